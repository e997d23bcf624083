"""What runs beside the training command, standard library only."""
