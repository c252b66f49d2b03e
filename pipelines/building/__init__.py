"""The build job: from a folder of codes to a collection."""
