"""What a build works on: the image, its masks, a made-up folder of fMRIPrep, prepared files."""
