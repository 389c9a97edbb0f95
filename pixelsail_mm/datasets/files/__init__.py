"""Files that readers read: annotations, restricted pickles, masks, images, index caches."""
