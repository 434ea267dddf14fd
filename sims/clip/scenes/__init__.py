"""Generated scenes: law (what is drawn and said), shapes, backgrounds, layouts (files), generation (a folder), sheet."""
