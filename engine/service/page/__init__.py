"""The page in the browser: HTML, CSS and JavaScript as they are, and how they are served."""
