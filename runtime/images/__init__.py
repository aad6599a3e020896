"""Images and videos: read, resize, cut into tiles."""
