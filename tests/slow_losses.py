"""The losses as loops over pixels in float64, and random inputs for them. Logits [B, C, H, W], labels [B, H, W]."""
import math

import torch


def random_case(seed, classes=7, shape=(2, 4, 5), ignored=0.4, scale=3.0):
    """Float64 logits whose values float32 holds exactly, and int64 labels, a share of them ignored."""
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape[0], classes, *shape[1:], generator=g)
    label = torch.randint(classes, shape, generator=g)
    label[torch.rand(shape, generator=g) < ignored] = 255
    return logits.double(), label


def random_confidence(seed, shape=(2, 4, 5)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1000 + seed))


def log_softmax(z):
    log_total = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
    return [v - log_total for v in z]


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def images(logits):
    """Per image, the logits of each pixel as a list."""
    return [image.flatten(1).T.tolist() for image in logits.double()]


def mean(values):
    return sum(values) / len(values) if values else 0.0


def pixel_entropy(z, kind):
    """The entropy as in the paper, or as in the released code, which takes the log-softmax of p."""
    p = softmax(z)
    return -sum(v * q for v, q in zip(p, log_softmax(z if kind == "shannon" else p)))


def cross_entropy(logits, label):
    return mean([-log_softmax(z)[y] for image, labels in zip(images(logits), label.flatten(1).tolist())
                 for z, y in zip(image, labels) if y != 255])


def entropy(logits, mask, kind):
    return mean([pixel_entropy(z, kind) for image, chosen in zip(images(logits), mask.flatten(1).tolist())
                 for z, m in zip(image, chosen) if m])


def negative(logits, rank):
    values = []
    for z in (z for image in images(logits) for z in image):
        p = softmax(z)
        k = sorted(range(len(p)), key=lambda c: -z[c])[rank - 1]
        values.append(-math.log(min(max(1 - p[k], 1e-5), 1)))
    return mean(values)


def ld_losses(logits, label, rank, entropy_on, kind):
    mask = label == 255 if entropy_on == "unselected" else torch.ones_like(label, dtype=torch.bool)
    return {"positive": cross_entropy(logits, label), "entropy": entropy(logits, mask, kind),
            "negative": negative(logits, rank)}


def confidence_weighted_cross_entropy(logits, label, confidence, threshold):
    total = 0.0
    for image, labels, conf in zip(images(logits), label.flatten(1).tolist(), confidence.flatten(1).tolist()):
        share = sum(c >= threshold for c in conf) / len(conf)
        total += share * sum(-log_softmax(z)[y] for z, y in zip(image, labels) if y != 255)
    return total / label.numel()


def maximum_squares(logits, balance):
    values = []
    for image in images(logits):
        predicted = [z.index(max(z)) for z in image]
        weights = [1 / (predicted.count(c) ** balance * len(image) ** (1 - balance)) for c in predicted]
        values.append(-sum(w * sum(v * v for v in softmax(z)) for w, z in zip(weights, image)) / 2)
    return mean(values)


def information_maximisation(logits):
    pixels = [softmax(z) for image in images(logits) for z in image]
    mean_p = [mean(values) for values in zip(*pixels)]
    return {"entropy": mean([-sum(v * math.log(v) for v in p if v > 0) for p in pixels]),
            "diversity": sum(v * math.log(v) for v in mean_p if v > 0)}


def crst_mrkld(logits, label, weight):
    return mean([-log_softmax(z)[y] - weight * mean(log_softmax(z))
                 for image, labels in zip(images(logits), label.flatten(1).tolist())
                 for z, y in zip(image, labels) if y != 255])
