"""Generated scenes: law (drawn and said), shapes, backgrounds, layouts (files), generation (a folder), sheet."""
