"""What enters and leaves: files, layouts, checks, splits, grids, patches and augmentation."""
