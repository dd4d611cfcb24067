"""Models are loaded one at a time."""

import threading

import torch

from trainers.policy import load_model


def test_models_that_are_loaded_at_once_stay_whole(model_dir):
    models, begin = [], threading.Barrier(3)

    def load():
        begin.wait()
        models.extend(load_model(str(model_dir), torch.float32) for _ in range(5))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    models.append(load_model(str(model_dir), torch.float32))
    assert len(models) == 16
    assert all(model.lm_head.weight is model.model.embed_tokens.weight for model in models)
