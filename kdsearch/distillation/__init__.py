"""Knowledge distillation: losses (pure functions), layer matching, recipes as data, and the loop that trains a student."""
