"""Ray as Drivetrain uses it: connecting, placing gangs, talking to agents."""
