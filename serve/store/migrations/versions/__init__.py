"""One file per step, numbered; `down_revision` names the one before. None is changed once it was released."""
