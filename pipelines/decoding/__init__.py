"""From encoded images to pixels, in guarded processes or in this one."""
