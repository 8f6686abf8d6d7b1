"""What is done to images. Knows no vault and no wire."""
