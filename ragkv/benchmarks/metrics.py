"""Scores of predictions, each from 0 to 1."""


def all_answers(prediction: str, answers: tuple[str, ...]) -> float:
    """Share of the answers that stand in the prediction as whole words: as RULER's, but "5" is not found in "532"."""
    said = prediction.split()
    return sum(answer in said for answer in answers) / len(answers)
