"""Reports on runs: one HTML page with figures, fits, advice and data; LaTeX tables; a table for the terminal."""
