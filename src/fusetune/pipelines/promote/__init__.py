"""Who is champion: promotion and the way back."""
