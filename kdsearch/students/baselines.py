"""The hand-made students that people use today: yardsticks of every study, marked in every table."""

from kdsearch.candidate import Architecture, Candidate, Initialization, Recipe, Term, Training


def baselines(teacher: Architecture, learning_rate: float = 3e-4, attention: bool = True) -> dict[str, Candidate]:
    """Three recipes of the literature at the teacher's shape; what of each is reproduced, its comment says.

    ``attention``: whether the teacher's family shows queries, keys and values.
    """
    half = Architecture(max(1, teacher.layers // 2), teacher.heads, teacher.head_size, teacher.ffn_ratio)
    narrow = Architecture(max(1, round(teacher.layers * 2 / 3)), teacher.heads, max(2, teacher.head_size // 4 * 2), teacher.ffn_ratio)
    every_other = Initialization("uniform", "slice")
    relations = (Term("minilmv2", 1.0, (("relation_heads", teacher.heads),)),) if attention else ()
    kd = Term("kd", 1.0, (("temperature", 2.0),))
    return {
        # Every other layer of the teacher, and only the labels: what distillation has to beat at the same latency.
        "no-kd": Candidate(half, every_other, Recipe("no-kd", 1.0), Training(learning_rate)),
        # Sanh et al. 2019: half the layers, soft targets at temperature 2, labels, cosine of the last hidden states. Not its pre-training.
        "distilbert": Candidate(
            half, every_other, Recipe("distilbert", 0.4, (kd, Term("cos", 0.2, (("matching", "last_only"),)))), Training(learning_rate)
        ),
        # Jiao et al. 2020: two thirds of the layers at half the width with all heads; hidden states of uniformly matched layers through a
        # projection, and relations of queries, keys, values (MiniLMv2) in place of attention scores, where the family shows them. Not its
        # two stages and augmentation.
        "tinybert": Candidate(
            narrow,
            every_other,
            Recipe("tinybert", 0.1, (kd, Term("hidden_mse", 1.0, (("matching", "uniform"),)), *relations)),
            Training(learning_rate),
        ),
    }
