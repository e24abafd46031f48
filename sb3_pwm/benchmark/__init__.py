"""Compare algorithms of SB3's family; nothing here knows PWM."""
