"""Students are plain Hugging Face models: how a teacher's config is narrowed, built, and started from the teacher's weights."""
