"""What is known of a GPU without one: compiled candidates, ranked by a cost model."""
