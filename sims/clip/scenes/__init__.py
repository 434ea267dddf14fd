"""Generated scenes: law (distribution, captions, drawing), shapes, backgrounds, layouts (files), generation, sheet."""
