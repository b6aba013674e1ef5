"""Every loss a second time: NumPy, float64, one example and one pair after the other, as the papers write them."""

import itertools

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def huber(x, y):
    error = abs(x - y)
    return 0.5 * error**2 if error < 1 else error - 0.5


def unit(x):
    return x / max(np.linalg.norm(x), 1e-12)


def per_example(of_one):
    """From a function of one example's tokens to one of the batch: padding is cut out, not masked."""

    def of_batch(student, teacher, mask):
        return np.array([of_one(s[m], t[m]) for s, t, m in zip(student, teacher, mask, strict=True)])

    return of_batch


# --- logits -----------------------------------------------------------------------------------------------------------------------


def kd(student, teacher, temperature):
    return np.array(
        [temperature**2 * kl(softmax(t / temperature), softmax(s / temperature)) for s, t in zip(student, teacher, strict=True)]
    )


def jsd(student, teacher):
    p, q = softmax(student), softmax(teacher)
    return np.array([kl(a, (a + b) / 2) / 2 + kl(b, (a + b) / 2) / 2 for a, b in zip(p, q, strict=True)])


def logit_mse(student, teacher):
    return np.array([np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])


def hard(student, labels):
    return np.array([0.0 if y == -100 else -np.log(softmax(s)[y]) for s, y in zip(student, labels, strict=True)])


def dkd(student, teacher, labels, alpha, beta, temperature):
    def of_one(s, t, y):
        if y == -100:
            return 0.0
        q, p = softmax(s / temperature), softmax(t / temperature)
        others = [c for c in range(len(s)) if c != y]
        target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        return temperature**2 * (alpha * target + beta * kl(p[others] / (1 - p[y]), q[others] / (1 - q[y])))

    return np.array([of_one(*row) for row in zip(student, teacher, labels, strict=True)])


def dist_mean(student, teacher, beta, gamma):
    """The published loss is of the batch: its mean is compared, not its parts."""
    p, q = softmax(student), softmax(teacher)
    over_classes = np.mean([1 - np.corrcoef(p[b], q[b])[0, 1] for b in range(len(p))])
    return beta * over_classes + gamma * np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(p.shape[1])])


# --- hidden states of one example -------------------------------------------------------------------------------------------------


def hidden_mse(s, t):
    return np.mean((s - t) ** 2)


def cos(s, t):
    return np.mean([1 - unit(a) @ unit(b) for a, b in zip(s, t, strict=True)])


def pkd(s, t):
    return np.sum((unit(s[0]) - unit(t[0])) ** 2)


def normalised_mse(s, t):
    return np.mean((t - s) ** 2) / np.mean(t**2)


def nst(s, t):
    return np.mean((s @ s.T / s.shape[1] - t @ t.T / t.shape[1]) ** 2)


def gram(s, t):
    return np.mean((s.T @ s / len(s) - t.T @ t / len(t)) ** 2)


def infonce(s, t, temperature=0.1):
    tokens = range(len(s))
    return np.mean([-np.log(softmax(np.array([unit(s[k]) @ unit(t[j]) / temperature for k in tokens]))[j]) for j in tokens])


# --- attention --------------------------------------------------------------------------------------------------------------------


def attention_mse(student, teacher, mask):
    return _over_heads(lambda a, b: np.mean((a - b) ** 2), student, teacher, mask)


def attention_kl(student, teacher, mask):
    return _over_heads(lambda a, b: np.mean([kl(softmax(v), softmax(u)) for u, v in zip(a, b, strict=True)]), student, teacher, mask)


def _over_heads(of_head, student, teacher, mask):
    cut = [np.ix_(m, m) for m in mask]
    return np.array([np.mean([of_head(s[h][c], t[h][c]) for h in range(len(s))]) for s, t, c in zip(student, teacher, cut, strict=True)])


def minilm(student, teacher, mask):
    def scores(x, y):
        return np.einsum("bhid,bhjd->bhij", x, y) / np.sqrt(x.shape[3])

    of_attention = attention_kl(scores(student[0], student[1]), scores(teacher[0], teacher[1]), mask)
    return of_attention + attention_kl(scores(student[2], student[2]), scores(teacher[2], teacher[2]), mask)


def minilmv2(student, teacher, mask, relation_heads):
    def relations(x):
        flat = np.concatenate([x[:, h] for h in range(x.shape[1])], axis=2)
        parts = np.split(flat, relation_heads, axis=2)
        return np.stack([part @ part.transpose(0, 2, 1) / np.sqrt(part.shape[2]) for part in parts], axis=1)

    return sum(attention_kl(relations(s), relations(t), mask) for s, t in zip(student, teacher, strict=True))


# --- relations --------------------------------------------------------------------------------------------------------------------


def distances(points):
    found = np.array([[np.linalg.norm(a - b) for b in points] for a in points])
    return found / max(found.sum() / max((found > 0).sum(), 1), 1e-12)


def cosine(points, i, j, k):
    return unit(points[j] - points[i]) @ unit(points[k] - points[i])


def rkd(student, teacher, distance, angle):
    n = range(len(student))
    s, t = distances(student), distances(teacher)
    of_distance = [np.mean([huber(s[i, j], t[i, j]) for j in n]) for i in n]
    of_angle = [np.mean([huber(cosine(student, i, j, k), cosine(teacher, i, j, k)) for j in n for k in n]) for i in n]
    return distance * np.array(of_distance) + angle * np.array(of_angle)


def similarity(student, teacher):
    s, t = (np.array([unit(row) for row in x @ x.T]) for x in (student, teacher))
    return np.mean((s - t) ** 2, axis=1)


def word_relation(student, teacher, mask, window, angle):
    def of_one(s, t, m):
        words = np.flatnonzero(m)
        a, b = distances(s[words]), distances(t[words])
        of_distance = np.mean([huber(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True)])
        triples = [(i, j, k) for i, j, k in itertools.product(words, repeat=3) if abs(i - j) <= window // 2 and abs(i - k) <= window // 2]
        return of_distance + angle * np.mean([huber(cosine(s, *triple), cosine(t, *triple)) for triple in triples])

    return np.array([of_one(*row) for row in zip(student, teacher, mask, strict=True)])


def layer_relation(student, teacher, mask, angle):
    def of_one(s, t):  # (layers, dim) of one word
        n = range(len(s))
        a, b = distances(s), distances(t)
        of_distance = np.mean([huber(a[i, j], b[i, j]) for i in n for j in n])
        return of_distance + angle * np.mean([huber(cosine(s, i, j, k), cosine(t, i, j, k)) for i in n for j in n for k in n])

    return np.array([np.mean([of_one(student[:, b, w], teacher[:, b, w]) for w in np.flatnonzero(m)]) for b, m in enumerate(mask)])
