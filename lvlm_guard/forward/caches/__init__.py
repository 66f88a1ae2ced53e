"""Caches of main and its branches: cropped, reordered, joined into one batch, and grown in place."""

from lvlm_guard.forward.caches.choosing import find_obstacle as find_obstacle
from lvlm_guard.forward.caches.choosing import is_static as is_static
from lvlm_guard.forward.caches.choosing import join as join
from lvlm_guard.forward.caches.growing import grow_in_place as grow_in_place
from lvlm_guard.forward.caches.joining import can_roll_back as can_roll_back
from lvlm_guard.forward.caches.joining import crop as crop
from lvlm_guard.forward.caches.joining import irreversible as irreversible
from lvlm_guard.forward.caches.joining import keep_whole as keep_whole
from lvlm_guard.forward.caches.joining import layers_of as layers_of
from lvlm_guard.forward.caches.joining import length_of as length_of
from lvlm_guard.forward.caches.joining import positions_beside as positions_beside
from lvlm_guard.forward.caches.joining import record_past_like as record_past_like
from lvlm_guard.forward.caches.static_masks import OpeningMask as OpeningMask
