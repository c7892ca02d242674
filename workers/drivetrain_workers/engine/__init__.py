"""DeepSpeed as Drivetrain uses it."""
