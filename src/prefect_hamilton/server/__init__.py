"""Programs that the image of the Prefect server runs in addition to Prefect."""
