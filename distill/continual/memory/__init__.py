"""Memory of earlier tasks' images: which are kept, and the file that holds them."""
