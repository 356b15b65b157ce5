"""Many images: resume, skip, report; fMRIPrep's folders, atlases, confounds, tables."""
