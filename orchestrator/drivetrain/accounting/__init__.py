"""Where a run's time, money and energy have gone."""
