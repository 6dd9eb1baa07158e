"""What the image of the Prefect server runs beside Prefect."""
