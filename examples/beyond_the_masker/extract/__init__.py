"""Series of regions from one image, volume by volume: voxels, averages, any masker."""
