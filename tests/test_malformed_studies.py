"""Studies, profiles and options that are wrong: each is refused at its place, by its path, with the cure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cifar_ablate.errors import AblateError, StudyError, UsageError
from cifar_ablate.spec.load import load_studies
from cifar_ablate.spec.overlay import load_overlay

SOUND = """\
study: tiny
question: Does it help?
seeds: 2
margin: 0.5
recipe:
  data: digits
  train_size: 500
  model: {name: resnet18-compact, width: 8}
  epochs: 4
  batch_size: 64
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
  schedule: {name: step, every_epochs: 2}
  augment: {hflip: {p: 0.5}}
  loss: {label_smoothing: 0.1}
baseline: plain
arms:
  plain:
  longer: {epochs: 8}
  no flip: {augment: {hflip: null}}
published: {plain: 82.4}
"""
ARMS_TEXT = SOUND[SOUND.index("arms:") :]


@dataclass(frozen=True)
class Case:
    """An edit of the sound study, and the problem it makes; ``others`` is how many more follow from it."""

    id: str
    old: str
    new: str
    at: str
    path: str
    says: str
    others: int = 0


def cases(table: str) -> list[Case]:
    """Three lines to a case: its name; the edit; line and column, dotted path and a part of the message."""
    lines = iter(table.strip().splitlines())
    found = []
    for name, edit, problem in zip(lines, lines, lines, strict=True):
        old, new = edit.split(" -> ", 1)
        at, path, says = (part.strip() for part in problem.split("|", 2))
        found.append(Case(name.removeprefix("# "), old, new, at, path, says))
    return found


TOP_LEVEL = cases(
    r"""
# a study name with a slash
tiny -> a/b
1:1 | study | the first a letter or digit (got 'a/b')
# a study name that climbs out
tiny -> ../tiny
1:1 | study | must be lower-case letters, digits
# a study name of dots
tiny -> ..
1:1 | study | (got '..')
# a study name in upper case
tiny -> Tiny
1:1 | study | must be lower-case letters
# a study name with a space
tiny -> my study
1:1 | study | (got 'my study')
# a study name that is a number
tiny -> 5
1:1 | study | must be text (got 5); put it in quotes
# a study name left empty
study: tiny -> study:
1:1 | study | must be text (got null)
# no study name
study: tiny -> # gone
2:1 | study | is required, such as `study: my-study`
# no question
question: Does it help? -> #
1:1 | question | is required, such as `question: Does it
# an empty question
question: Does it help? -> question: ''
2:1 | question | must not be empty
# a question with a terminal escape
Does it help? -> "a\e[2J"
2:11 | question | character U+001B
# a question with half a character
Does it help? -> "\ud800"
2:11 | question | character U+D800
# a typo in a top key
margin -> margn
4:1 | margn | unknown key 'margn'; did you mean 'margin'?
# an unknown top key
margin -> zzz
4:1 | zzz | known: study, question, seeds, margin, expected_sd, recipe
# a recipe key at the top
margin: 0.5 -> epochs: 5
4:1 | epochs | it belongs under `recipe`
# an option at the top
margin: 0.5 -> lr: 5
4:1 | lr | did you mean 'recipe.optimizer.lr'?
# a top key given twice
margin: 0.5 -> seeds: 3
4:1 | seeds | is given twice (first in line 3); keep
# no seeds
seeds: 2 -> seeds: 0
3:1 | seeds | must be at least 1 (got 0)
# a negative number of seeds
seeds: 2 -> seeds: -3
3:1 | seeds | must be at least 1 (got -3)
# too many seeds
seeds: 2 -> seeds: 99999999999
3:1 | seeds | must be at most 1000
# 2.0 seeds
seeds: 2 -> seeds: 2.0
3:1 | seeds | a whole number, a list or a mapping (got 2.0); write 2
# seeds in words
seeds: 2 -> seeds: many
3:1 | seeds | must be a whole number, a list or a mapping (got 'many')
# seeds in quotes
seeds: 2 -> seeds: '2'
3:1 | seeds | (got '2'); remove the quotes
# seeds that are true
seeds: 2 -> seeds: true
3:1 | seeds | (got true)
# an empty list of seeds
seeds: 2 -> seeds: []
3:1 | seeds | must not be empty
# a seed twice
seeds: 2 -> seeds: [0, 1, 0]
3:1 | seeds | lists seed 0 twice, which would be the same
# a negative seed
seeds: 2 -> seeds: [0, -1]
3:12 | seeds.1 | must be at least 0 (got -1)
# a seed in words
seeds: 2 -> seeds: [a]
3:9 | seeds.0 | must be a whole number (got 'a')
# a seed beyond 32 bits
seeds: 2 -> seeds: [9999999999]
3:9 | seeds.0 | at most 4294967295
# a number beyond 64 bits
seeds: 2 -> seeds: 1000000000000000000000000000000
3:8 | seeds | whole numbers go up to 92233720
# seeds as a mapping
seeds: 2 -> seeds: {from: 1}
3:1 | seeds | must be a number, a list, or {looks: [5, 8, 12]} (got {from: 1})
# looks with a typo
seeds: 2 -> seeds: {look: [5, 8]}
3:1 | seeds | must be a number, a list, or {looks: [5, 8, 12]} (got {look: [5, 8]})
# looks beside a number of seeds
seeds: 2 -> seeds: {looks: [5, 8], num: 8}
3:1 | seeds | (got {looks: [5, 8], num: 8})
# one look
seeds: 2 -> seeds: {looks: [5]}
3:9 | seeds.looks | needs at least two looks, such as [5, 8, 12]; for a fixed number of seeds write seeds: 5
# no looks
seeds: 2 -> seeds: {looks: []}
3:9 | seeds.looks | needs at least two looks
# looks that are a number
seeds: 2 -> seeds: {looks: 5}
3:9 | seeds.looks | must be a list (got 5)
# looks left empty
seeds: 2 -> seeds: {looks: }
3:9 | seeds.looks | must be a list (got null)
# a look at two seeds
seeds: 2 -> seeds: {looks: [2, 5]}
3:17 | seeds.looks.0 | must be at least 3 (got 2)
# a look at too many seeds
seeds: 2 -> seeds: {looks: [5, 1001]}
3:20 | seeds.looks.1 | must be at most 1000 (got 1001)
# a look in quotes
seeds: 2 -> seeds: {looks: [5, '8']}
3:20 | seeds.looks.1 | must be a whole number (got '8'); remove the quotes
# looks out of order
seeds: 2 -> seeds: {looks: [5, 12, 8]}
3:9 | seeds.looks | each look takes more seeds than the one before, but 8 follows 12; put them in order
# a look twice
seeds: 2 -> seeds: {looks: [5, 5]}
3:9 | seeds.looks | but 5 follows 5
# an expected spread of zero
margin: 0.5 -> expected_sd: 0
4:1 | expected_sd | must be more than 0 (got 0)
# an expected spread in words
margin: 0.5 -> expected_sd: small
4:1 | expected_sd | must be a number (got 'small')
# an expected spread over 100
margin: 0.5 -> expected_sd: 101
4:1 | expected_sd | must be at most 100 (got 101)
# a negative margin
margin: 0.5 -> margin: -0.5
4:1 | margin | must be at least 0 (got -0.5)
# a margin that is not a number
0.5 -> .nan
4:1 | margin | must be a finite number (got nan)
# an infinite margin
margin: 0.5 -> margin: .inf
4:1 | margin | must be a finite number (got inf)
# a margin over 100
margin: 0.5 -> margin: 101
4:1 | margin | must be at most 100 (got 101)
# a margin with its unit
0.5 -> 0.5 points
4:1 | margin | must be a number (got '0.5 points')
"""
)
RECIPE = cases(
    r"""
# a typo in the data set
digits -> digitz
6:3 | recipe.data | did you mean 'digits'?
# a data set in upper case
digits -> CIFAR10
6:3 | recipe.data | did you mean 'cifar10'?
# data that is a number
digits -> 5
6:3 | recipe.data | must be one of cifar10, cifar100, digits,
# data that is a list
digits -> [digits]
6:3 | recipe.data | or {name: ..., option: ...} (got ['digits'
# images without their path
digits -> image_folder
6:3 | recipe.data.path | required by image_folder
# a path that is a number
digits -> {name: image_folder, path: 5}
6:30 | recipe.data.path | must be text or a list (got 5); put it in quotes
# an option of another data set
digits -> {name: digits, path: a}
6:24 | recipe.data.path | unknown key 'path', which is an option of image_folder
# a train size in words
500 -> all
7:3 | recipe.train_size | must be a whole number (got 'all')
# a train size of zero
500 -> 0
7:3 | recipe.train_size | must be at least 1 (got 0)
# a typo in a recipe key
train_size -> trian_size
7:3 | recipe.trian_size | did you mean 'train_size'
# a batch larger than the data
train_size: 500 -> train_size: 50
10:3 | recipe.batch_size | batch_size 64 is more than train_size 50; make one step smaller
# a typo in our model
{name: resnet18-compact, width: 8} -> resnet18-compac
8:3 | recipe.model | did you mean 'resnet18-compact'?
# half a model's name
{name: resnet18-compact, width: 8} -> resnet
8:3 | recipe.model | unknown model 'resnet'; did you mean 'resnet18'
# a typo in a timm model
{name: resnet18-compact, width: 8} -> vit_tiny_patch16_22
8:3 | recipe.model | mean 'vit_tiny_patch16_224'?
# a model that nobody knows
{name: resnet18-compact, width: 8} -> zzz
8:3 | recipe.model | unknown model 'zzz'; known: resnet18, resnet18-compact, and every timm model
# a model without a name
{name: resnet18-compact, width: 8} -> {width: 8}
8:3 | recipe.model | the `name` of the model is missing
# a model named by a number
{name: resnet18-compact, width: 8} -> {name: 5}
8:11 | recipe.model.name | must be the name of a model
# a typo in an option
width -> widht
8:35 | recipe.model.widht | did you mean 'width'?
# our option for a timm model
resnet18-compact -> resnet50
8:27 | recipe.model.width | an option of resnet18
# epochs in quotes
epochs: 4 -> epochs: '4'
9:3 | recipe.epochs | (got '4'); remove the quotes
# 4.0 epochs
epochs: 4 -> epochs: 4.0
9:3 | recipe.epochs | a whole number (got 4.0); write 4
# half an epoch
epochs: 4 -> epochs: 0.5
9:3 | recipe.epochs | must be a whole number (got 0.5)
# epochs that are true
epochs: 4 -> epochs: true
9:3 | recipe.epochs | (got true)
# negative epochs
epochs: 4 -> epochs: -1
9:3 | recipe.epochs | must be at least 1 (got -1)
# a list of epochs
epochs: 4 -> epochs: [4]
9:3 | recipe.epochs | must be a whole number (got [4])
# a year of epochs
epochs: 4 -> epochs: 5000000
9:3 | recipe.epochs | must be at most 1000000
# epochs with a separator
epochs: 4 -> epochs: 1_000
9:3 | recipe.epochs | (got '1_000')
# a scale outside an overlay
epochs: 4 -> epochs: {times: 2}
9:3 | recipe.epochs | (got {times: 2}); {times: ...} is for profiles and --set only
# a precision that nobody has
batch_size: 64 -> precision: fp23
10:3 | recipe.precision | must be one of 'auto', 'fp32' or 'bf16' (got 'fp23'); did you mean 'fp32'?
# an option in the recipe
batch_size: 64 -> lr: 0.1
10:3 | recipe.lr | did you mean 'optimizer.lr'?
# an augmentation in the recipe
batch_size: 64 -> mixup: {}
10:3 | recipe.mixup | 'augment.mixup'?
# an option of two augmentations
batch_size: 64 -> alpha: 1
10:3 | recipe.alpha | did you mean 'augment.cutmix.alpha' or 'augment.mixup.alpha'?
# seeds in the recipe
batch_size: 64 -> seeds: 3
10:3 | recipe.seeds | belongs at the top of the study
# from in the recipe
batch_size: 64 -> from: plain
10:3 | recipe.from | only an arm has it
# an overlay's key
batch_size: 64 -> width?: 4
10:3 | recipe.width? | in profiles and --set
# a dotted key
batch_size: 64 -> loss.a: 1
10:3 | recipe.loss.a | write it nested: loss: {a: ...}
# a recipe key twice
batch_size: 64 -> epochs: 5
10:3 | recipe.epochs | is given twice (first in line 9)
"""
)
COMPONENTS = cases(
    r"""
# an optimizer without its rate
{name: sgd, lr: 0.1, momentum: 0.9} -> sgd
11:3 | recipe.optimizer.lr | write optimizer: {name: sgd, lr: ...}
# an optimizer in upper case
name: sgd -> name: SGD
11:15 | recipe.optimizer.name | did you mean 'sgd'?
# another library's optimizer
name: sgd -> name: lamb
11:15 | recipe.optimizer.name | known: adamw, muon, sgd
# nesterov without momentum
momentum: 0.9 -> nesterov: true
11:3 | recipe.optimizer | nesterov: true needs momentum above 0; set momentum, such as 0.9
# yes for true
momentum: 0.9 -> nesterov: yes
11:35 | recipe.optimizer.nesterov | true or false (got 'yes')
# a momentum of 1
0.9 -> 1
11:35 | recipe.optimizer.momentum | must be less than 1 (got 1)
# a learning rate of 0
lr: 0.1 -> lr: 0
11:26 | recipe.optimizer.lr | must be more than 0 (got 0)
# a learning rate that is no number
lr: 0.1 -> lr: .nan
11:26 | recipe.optimizer.lr | a finite number (got nan)
# an overflowing learning rate
lr: 0.1 -> lr: 1e400
11:26 | recipe.optimizer.lr | a finite number (got inf)
# a learning rate that is true
lr: 0.1 -> lr: true
11:26 | recipe.optimizer.lr | must be a number (got true)
# a learning rate in quotes
lr: 0.1 -> lr: '5e-4'
11:26 | recipe.optimizer.lr | remove the quotes
# a learning rate as a mapping
lr: 0.1 -> lr: {a: 1}
11:26 | recipe.optimizer.lr | (got {a: 1})
# an option twice
momentum: 0.9 -> lr: 0.2
11:35 | recipe.optimizer.lr | is given twice (first in line 11)
# an option of another optimizer
name: sgd -> name: adamw
11:37 | recipe.optimizer.momentum | unknown key 'momentum', which is an option of muon and sgd; known: name, lr, betas
# one beta
{name: sgd, lr: 0.1, momentum: 0.9} -> {name: adamw, lr: 1, betas: [0.9]}
11:35 | recipe.optimizer.betas | must have 2 items
# three betas
{name: sgd, lr: 0.1, momentum: 0.9} -> {name: adamw, lr: 1, betas: [0, 0, 0]}
11:35 | recipe.optimizer.betas | at most 2 items
# a beta of 1
{name: sgd, lr: 0.1, momentum: 0.9} -> {name: adamw, lr: 1, betas: [0, 1]}
11:46 | recipe.optimizer.betas.1 | less than 1
# a recipe key among options
momentum: 0.9 -> epochs: 9
11:35 | recipe.optimizer.epochs | did you mean 'epochs'?
# steps without their length
{name: step, every_epochs: 2} -> step
12:3 | recipe.schedule.every_epochs | is required by step; write schedule:
# two and a half epochs
every_epochs: 2 -> every_epochs: 2.5
12:26 | recipe.schedule.every_epochs | (got 2.5)
# a near schedule
{name: step, every_epochs: 2} -> onecycle
12:3 | recipe.schedule | did you mean 'one-cycle'?
# a near choice
{name: step, every_epochs: 2} -> {name: one-cycle, shape: cosine}
12:31 | recipe.schedule.shape | did you mean 'cos'?
# a probability of 5
{p: 0.5} -> {p: 5}
13:21 | recipe.augment.hflip.p | must be at most 1 (got 5)
# a negative probability
{p: 0.5} -> {p: -1}
13:21 | recipe.augment.hflip.p | must be at least 0 (got -1)
# a bare probability
{p: 0.5} -> 0.5
13:13 | recipe.augment.hflip | a mapping of options, {} for the defaults
# an augmentation switched on
{p: 0.5} -> true
13:13 | recipe.augment.hflip | (got true)
# an unknown option
{p: 0.5} -> {q: 0.5}
13:21 | recipe.augment.hflip.q | unknown key 'q'; known: p
# a near augmentation
{hflip: {p: 0.5}} -> {hflip: {}, cutmx: {}}
13:24 | recipe.augment.cutmx | did you mean 'cutmix'?
# an unknown augmentation
{hflip: {p: 0.5}} -> {hflip: {}, zz: {}}
13:24 | recipe.augment.zz | known: affine, alternating-flip, crop
# two ways to mirror
{hflip: {p: 0.5}} -> {hflip: {}, alternating-flip: {}}
13:24 | recipe.augment.alternating-flip | and hflip together mirror at random, as hflip alone does; remove one
# a reversed scale
{hflip: {p: 0.5}} -> {hflip: {}, affine: {scale: [2, 1]}}
13:24 | recipe.augment.affine | scale must be [smallest, largest] (got [2, 1]); swap the two
# half a scale
{hflip: {p: 0.5}} -> {hflip: {}, affine: {scale: [1]}}
13:33 | recipe.augment.affine.scale | must have 2 items (got
# a loss that is a number
{label_smoothing: 0.1} -> 0.1
14:3 | recipe.loss | must be a mapping (got 0.1)
# all of the label smoothed
label_smoothing: 0.1 -> label_smoothing: 1
14:10 | recipe.loss.label_smoothing | less than 1
# a near loss option
label_smoothing -> smoothing
14:10 | recipe.loss.smoothing | did you mean 'label_smoothing'?
# an augmentation left empty
{hflip: {p: 0.5}} -> {hflip: {}, crop: }
13:24 | recipe.augment.crop | write {} for the defaults
"""
)
ARMS = cases(
    r"""
# a near baseline
baseline: plain -> baseline: plian
15:1 | baseline | no arm 'plian'; did you mean 'plain'?
# no baseline
baseline: plain -> #
1:1 | baseline | no arm is called 'baseline'; known: plain, longer, no flip
# a baseline that is a number
baseline: plain -> baseline: 1
15:1 | baseline | must be text (got 1); put it
# an arm given twice
longer: {epochs: 8} -> plain: {epochs: 8}
18:3 | arms.plain | is given twice (first in line 17)
# an arm that is a number
longer: {epochs: 8} -> longer: 8
18:3 | arms.longer | must be a mapping (got 8)
# an arm of the baseline's values
longer: {epochs: 8} -> longer: {epochs: 4}
18:3 | arms.longer | is the same recipe as 'plain'
# an arm that says nothing
longer: {epochs: 8} -> longer:
18:3 | arms.longer | states no difference from 'plain'; state one
# an arm of what is only recorded
longer: {epochs: 8} -> longer: {eval_every: 2}
18:3 | arms.longer | is the same recipe as
# a near parent
longer: {epochs: 8} -> longer: {epochs: 8, from: plian}
18:23 | arms.longer.from | did you mean 'plain'?
# an arm from itself
longer: {epochs: 8} -> longer: {from: longer}
18:12 | arms.longer.from | forms a circle: longer -> longer
# a parent that is a number
longer: {epochs: 8} -> longer: {from: 5}
18:12 | arms.longer.from | (got 5); put it in quotes
# a parent that is nothing
longer: {epochs: 8} -> longer: {epochs: 8, from: }
18:23 | arms.longer.from | (got null); remove it to differ
# a recipe in an arm
longer: {epochs: 8} -> longer: {recipe: {epochs: 8}}
18:12 | arms.longer.recipe | without it
# seeds in an arm
longer: {epochs: 8} -> longer: {seeds: 3}
18:12 | arms.longer.seeds | it belongs at the top of the study
# a typo of from
longer: {epochs: 8} -> longer: {form: plain}
18:12 | arms.longer.form | did you mean 'from'?
# an option in an arm
longer: {epochs: 8} -> longer: {lr: 5}
18:12 | arms.longer.lr | did you mean 'optimizer.lr'?
# a scale in an arm
longer: {epochs: 8} -> longer: {epochs: {times: 2}}
18:12 | arms.longer.epochs | is for profiles and --set
# null that removes nothing
longer: {epochs: 8} -> longer: {precision: null}
18:12 | arms.longer.precision | but there is none
# null for a near key
longer: {epochs: 8} -> longer: {epoch: null}
18:12 | arms.longer.epoch | did you mean 'epochs'?
# null that was meant as defaults
longer: {epochs: 8} -> longer: {augment: {mixup: }}
18:22 | arms.longer.augment.mixup | remove the line, or write {} for the defaults
# null for what is required
longer: {epochs: 8} -> longer: {epochs: null}
18:12 | arms.longer.epochs | is required, such as
# another optimizer without options
longer: {epochs: 8} -> longer: {optimizer: adamw}
18:12 | arms.longer.optimizer.lr | by adamw
# an option that does not carry over
longer: {epochs: 8} -> longer: {optimizer: {name: adamw, lr: 1, momentum: 0.9}}
18:44 | arms.longer.optimizer.momentum | which is an option of muon and sgd
# an arm's batch too large
longer: {epochs: 8} -> longer: {batch_size: 501}
18:12 | arms.longer.batch_size | more than train_size 500
# an arm's data too small
longer: {epochs: 8} -> longer: {train_size: 50}
10:3 | recipe.batch_size | smaller (in arm 'longer')
# nesterov with an arm's momentum
longer: {epochs: 8} -> longer: {optimizer: {momentum: 0, nesterov: true}}
18:12 | arms.longer.optimizer | needs momentum
# an arm's probability of 5
longer: {epochs: 8} -> longer: {augment: {affine: {p: 5}}}
18:31 | arms.longer.augment.affine.p | at most 1 (got 5)
# an arm's name with a bell
longer: -> "lo\anger":
18:3 | arms.'lo\x07nger' | holds the control character U+0007
# an arm's name with a tab
longer: -> "lo\tnger":
18:3 | arms.'lo\tnger' | must be a name of 1 to 80 printable
# an arm without a name
longer: -> "":
18:3 | arms.'' | 1 to 80 printable characters
# an arm's name with a space before
longer: -> " longer":
18:3 | arms.' longer' | without spaces at its ends
# an arm's name that is a list
longer: -> [a, b]:
18:3 | arms | a key must be a name, not a list or mapping
# a figure for a near arm
{plain: -> {plane:
20:13 | published.plane | no arm 'plane'; did you mean 'plain'?
# a figure over 100
82.4 -> 824
20:13 | published.plain | must be at most 100 (got 824)
# a negative figure
82.4 -> -1
20:13 | published.plain | must be at least 0 (got -1)
# a figure with its unit
82.4 -> 82.4%
20:13 | published.plain | must be a number or a mapping (got '82.4%')
# a note without a figure
82.4 -> {note: x}
20:13 | published.plain.accuracy | is required
# a typo in a figure
82.4 -> {accuracy: 8, nte: x}
20:34 | published.plain.nte | did you mean 'note'?
# a figure for the whole study
{plain: 82.4} -> 82.4
20:1 | published | must be a mapping (got 82.4)
# a baseline from an arm
plain: -> plain: {from: longer}
17:11 | arms.plain.from | the baseline differs from no
"""
)
NOT_YAML = cases(
    r"""
# a quote left open
Does it -> "Does it
2:11 |  | close the quote that opens in line 2
# a colon in text
Does it help? -> Does it: help?
2:18 |  | put text that holds ': ' in quotes
# a bracket left open
{epochs: 8} -> {epochs: 8
19:10 |  | close the bracket that opens in line 18
# a bracket too many
{epochs: 8} -> {epochs: 8}}
18:22 |  | check the brackets
# a key without a space
margin: 0.5 -> margin:0.5
5:1 |  | write `key: value`, with a space after the colon
# an at sign
batch_size: 64 -> batch_size: @64
10:15 |  | put the value in quotes
# a question mark in a mapping
{epochs: 8} -> {model: {width?: 8}}
18:25 |  | put the key in quotes
# two documents
margin: 0.5 -> ---
4:1 |  | keep one document to a file, without ---
# an alias without its anchor
{epochs: 8} -> *eight
18:11 |  | found undefined alias 'eight'; write the value out
# an alias of itself
{epochs: 8} -> &a {augment: *a}
18:11 | arms.longer.augment | holds an alias of itself
# a merge key
{epochs: 8} -> {<<: {epochs: 8}}
18:12 | arms.longer.<< | use `from:` to build one arm on another
# a tag that runs code
{epochs: 8} -> !!python/object/apply:os.getcwd []
18:11 | arms.longer | is not supported; remove it
# a tag for a number
epochs: 8 -> epochs: !!int 8
18:20 | arms.longer.epochs | is not supported; remove it
"""
)
UNUSUAL = [  # edits of more than one line, or with characters that do not show
    Case("a long question", "Does", "Does " * 200, "2:1", "question", "must be at most 500 characters long"),
    Case("no data", "  data: digits\n", "", "5:1", "recipe.data", "is required, such as `data: cifar10`"),
    Case(
        "a model left empty",
        "{name: resnet18-compact, width: 8}",
        "",
        "8:3",
        "recipe.model",
        "has no value; write one, or remove the line",
    ),
    Case(
        "epochs of 5,000 digits", "epochs: 4", f"epochs: {'9' * 5000}", "9:3", "recipe.epochs", "must be a whole number"
    ),
    Case(
        "a recipe that is a list", "recipe:", "recipe: []\nbaselin:", "5:1", "recipe", "must be a mapping (got [])", 1
    ),
    Case(
        "an optimizer without a name",
        "name: sgd, ",
        "",
        "11:3",
        "recipe.optimizer",
        "the `name` of the optimizer is missing",
    ),
    Case(
        "a list of augmentations",
        "{hflip: {p: 0.5}}",
        "[hflip]",
        "13:3",
        "recipe.augment",
        "must be a mapping such as {hflip: {p: 0.5}}",
        1,
    ),
    Case(
        "arms from each other",
        "longer: {epochs: 8}",
        "longer: {epochs: 8, from: last}\n  last: {epochs: 9, from: longer}",
        "18:23",
        "arms.longer.from",
        "forms a circle: longer -> last -> longer; let one of them differ from the baseline",
    ),
    Case(
        "an arm's name of 81 characters",
        "longer:",
        "x" * 81 + ":",
        "18:3",
        "arms." + "x" * 81,
        "1 to 80 printable characters",
    ),
    Case("no arms", ARMS_TEXT, "arms: {}", "16:1", "arms", "must not be empty"),
    Case("arms in a list", ARMS_TEXT, "arms: [plain]", "16:1", "arms", "must be a mapping (got ['plain'])"),
    Case(
        "a tab for indentation",
        "  longer: {epochs: 8}",
        "\tlonger: {epochs: 8}",
        "18:1",
        "",
        "indent with spaces, not tabs",
    ),
    Case("a bad indentation", "  data: digits", " data: digits", "7:13", "", "or check the indentation"),
    Case(
        "a list among the arms",
        "  longer: {epochs: 8}",
        "- longer: {epochs: 8}",
        "18:1",
        "",
        "the indentation of the block that begins in",
    ),
    Case(
        "a control character",
        "Does it help?",
        "Does\x07it help?",
        "2:15",
        "",
        "holds the control character U+0007; remove it",
    ),
]
EDITS = [*UNUSUAL, *TOP_LEVEL, *RECIPE, *COMPONENTS, *ARMS, *NOT_YAML]


def problems_of(
    path: Path, *, profile: str | None = None, settings: tuple[str, ...] = ()
) -> list[tuple[str, str, str]]:
    """(origin, path, message) of each problem, of which there must be some."""
    with pytest.raises(StudyError) as caught:
        load_studies([path], load_overlay(profile, settings))
    assert caught.value.exit_code == 2
    for problem in caught.value.problems:
        assert str(problem).isprintable()
        assert ";" in problem.message or "must" in problem.message or "is required" in problem.message
    return [(str(problem.location), problem.path, problem.message) for problem in caught.value.problems]


def write(folder: Path, content: str | bytes, name: str = "study.yaml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("case", EDITS, ids=lambda case: case.id)
def test_a_study_with(case: Case, tmp_path: Path) -> None:
    assert case.old in SOUND
    path = write(tmp_path, SOUND.replace(case.old, case.new, 1))
    found = problems_of(path)
    said = [message for origin, where, message in found if (origin, where) == (f"{path}:{case.at}", case.path)]
    assert len(said) == 1, found
    assert case.says in said[0]
    assert len(found) == 1 + case.others, found


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
FILES = {
    "an empty file": ("", "", "is empty; a study is a mapping: study: NAME"),
    "only comments": ("# nothing\n# yet\n", "", "is empty; a study is a mapping"),
    "a list": ("- study: a\n", ":1:1", "is not a study; a study is a mapping"),
    "one word": ("hello", ":1:1", "is not a study; a study is a mapping"),
    "Latin-1": ("study: tiny\nquestion: caf\xe9\n".encode("latin-1"), ":2:14", "is not UTF-8 text; save the file"),
    "UTF-16": (SOUND.encode("utf-16"), ":1:1", "is not UTF-8 text"),
    "a null byte": ("study: a\0b", ":1:9", "holds the control character U+0000; remove it"),
    "2 MB": ("#" * 2_000_000, "", "is over 500,000 bytes; name a study file"),
    "a billion laughs": (LAUGHS, ":1:5", "aliases expand this study to over 10,000 values, or nest them too deeply"),
    "deep nesting": (f"a: {'[' * 60}{']' * 60}", ":1:44", "is nested too deeply; close the brackets"),
    "bottomless nesting": (f"a: {'[' * 5000}{']' * 5000}", ":1:44", "is nested too deeply; close the brackets"),
    "a set": ("!!set {a, b}", ":1:1", "is not supported; remove it"),
    "a mapping for a key": ("? {a: b}\n: c\n", ":1:3", "a key must be a name"),
    "a profile": ("profile: quick\nseeds: 2\n", ":1:1", "is for profiles; give this file as --profile FILE"),
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_of(content: str, tmp_path: Path) -> None:
    text, at, says = FILES[content]
    path = write(tmp_path, text)
    [(origin, _, message)] = problems_of(path)
    assert origin == f"{path}{at}"
    assert says in message


def test_a_file_that_is_missing_names_a_near_one(tmp_path: Path) -> None:
    write(tmp_path, SOUND, "augmentation.yaml")
    [(origin, _, message)] = problems_of(tmp_path / "augmentatoin.yaml")
    assert origin == str(tmp_path / "augmentatoin.yaml")
    assert message == f"does not exist; did you mean {tmp_path / 'augmentation.yaml'}?"
    assert (
        problems_of(tmp_path / "no" / "a.yaml")[0][2] == f"does not exist; there is no folder {tmp_path / 'no'} either"
    )


def test_a_folder_is_not_a_study(tmp_path: Path) -> None:
    assert problems_of(tmp_path)[0][2] == f"is a folder; name the files in it: {tmp_path}/*.yaml"


def test_two_files_with_one_study_name(tmp_path: Path) -> None:
    first, second = write(tmp_path, SOUND, "first.yaml"), write(tmp_path, "# again\n" + SOUND, "second.yaml")
    with pytest.raises(StudyError) as caught:
        load_studies([first, second])
    expected = f"{second}:2:1: study: 'tiny' is already the name of {first}; each study needs its own"
    assert str(caught.value) == expected


def test_all_problems_of_all_files_are_told_in_their_order(tmp_path: Path) -> None:
    text = SOUND
    for old, new in (("tiny", "Tiny"), ("margin: 0.5", "margin: -1"), ("epochs: 4", "epochs: x"), ("0.5}", "7}")):
        text = text.replace(old, new, 1)
    text = text.replace("{epochs: 8}", "{batch_size: q, from: nobody}").replace("{plain: 82.4}", "{plane: 82.4}")
    text = text.replace("  no flip:", "  other: {loss: {smooth: 1}}\n  no flip:")
    first, second = (
        write(tmp_path, text, "first.yaml"),
        write(tmp_path, SOUND.replace("seeds: 2", "seeds: 0"), "b.yaml"),
    )
    with pytest.raises(StudyError) as caught:
        load_studies([first, second])
    assert [
        (str(problem.location).removeprefix(f"{tmp_path}/"), problem.path) for problem in caught.value.problems
    ] == [
        ("first.yaml:1:1", "study"),
        ("first.yaml:4:1", "margin"),
        ("first.yaml:9:3", "recipe.epochs"),
        ("first.yaml:13:21", "recipe.augment.hflip.p"),
        ("first.yaml:18:27", "arms.longer.from"),
        ("first.yaml:19:18", "arms.other.loss.smooth"),
        ("first.yaml:21:13", "published.plane"),
        ("b.yaml:3:1", "seeds"),
    ]


SETTINGS = {
    "lr=0.1": "unknown key 'lr'; did you mean 'optimizer.lr'?",
    "train_siz=5": "unknown key 'train_siz'; did you mean 'train_size'?",
    "zzz=5": "unknown key 'zzz'; known: seeds, data, train_size, model",
    "recipe.epochs=5": "unknown key 'recipe'; write the recipe's keys here without it",
    "margin=1": "unknown key 'margin'; it belongs at the top of the study",
    "epochs?=3": "unknown key 'epochs?'; only options of a component may end with ?",
    "optimizer.lr": "write it as KEY=VALUE, such as --set optimizer.lr=0.1",
    "optimizer.lr=": "write it as KEY=VALUE",
    "optimizer..lr=1": "write it as KEY=VALUE",
    "=5": "write it as KEY=VALUE",
    "": "write it as KEY=VALUE",
    "seeds=0": "seeds are a number of them, or a list such as [0, 1, 2]",
    "seeds=[1, 1]": "seeds are a number of them",
    "seeds={times: 2}": "seeds are a number of them",
    "seeds={looks: [5]}": "seeds.looks: needs at least two looks",
    "seeds={looks: [2, 5]}": "seeds.looks: must be at least 3 (got 2)",
    "seeds={looks: [5, 3]}": "seeds.looks: each look takes more seeds than the one before, but 3 follows 5",
    "seeds.a=1": "seeds are a number of them",
    f"epochs={'1' * 300}": "put them into a profile FILE",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_option_that_cannot_be_read(setting: str) -> None:
    with pytest.raises(UsageError, match=r"^--set") as caught:
        load_overlay(None, [setting])
    assert SETTINGS[setting] in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_option_with_a_terminal_escape_is_not_echoed() -> None:
    with pytest.raises(UsageError) as caught:
        load_overlay(None, ["epochs=\x1b[2J"])
    assert str(caught.value).isprintable()


OVERLAYS = {
    "epochs={times: 0}": ("epochs.times", "times must be a number above 0 (got 0)"),
    "epochs={times: -1}": ("epochs.times", "times must be a number above 0 (got -1)"),
    "epochs={times: .inf}": ("epochs.times", "times must be a number above 0 (got inf)"),
    "epochs={times: x}": ("epochs.times", "times must be a number above 0 (got 'x')"),
    "epochs={times: true}": ("epochs.times", "times must be a number above 0 (got true)"),
    "optimizer.momentum={times: 2}": ("optimizer.momentum", "must be less than 1 (got 1.8)"),
    "epochs={times: 2, plus: 1}": ("epochs", "must be a whole number (got {times: 2, plus: 1})"),
    "model={times: 2}": ("model", "there is no number here to scale; set a value instead of {times: ...}"),
    "augment.affine.p={times: 2}": ("augment.affine.p", "there is no number here to scale"),
    "augment.hflip.p={times: 2}": ("augment.hflip.p", "set a value instead of {times: ...} (in arm 'no flip')"),
    "augment.hflip=null": ("augment.hflip", "null removes a key, but there is none to remove here"),
    "optimizer.lrr=5": ("optimizer.lrr", "unknown key 'lrr'; did you mean 'lr'?"),
    "optimizer=adamw": ("optimizer.lr", "is required by adamw; write optimizer: {name: adamw, lr: ...}"),
    "epochs.x=1": ("epochs", "must be a whole number (got {x: 1})"),
    "model.width?=x": ("model.width?", "must be a whole number (got 'x')"),
    "model.depth?=4": ("model.depth?", "no model has an option 'depth'; did you mean 'width'?"),
    "augment.hflip.p?=1": ("augment.hflip.p?", "only options of data, model, optimizer, schedule may end with ?"),
    'model={name: [a], "width?": 8}': ("model.name", "must be the name of a model (got ['a'])"),
}


@pytest.mark.parametrize("setting", OVERLAYS)
def test_an_overlay_that_does_not_fit(setting: str, tmp_path: Path) -> None:
    where, says = OVERLAYS[setting]
    [(origin, path, message)] = problems_of(write(tmp_path, SOUND), settings=(setting,))
    assert (origin, path) == (f"--set {setting}", where)
    assert says in message


@pytest.mark.parametrize(
    ("setting", "at"), [("epochs=[", ":1:2"), ("epochs=a: b: c", ":1:5"), ("epochs=!!int 5", ":1:1")]
)
def test_an_overlay_that_is_not_yaml(setting: str, at: str, tmp_path: Path) -> None:
    [(origin, _, _)] = problems_of(write(tmp_path, SOUND), settings=(setting,))
    assert origin == f"--set {setting}{at}"


@pytest.mark.parametrize(
    ("setting", "arm", "at"), [("epochs=5", "longer", "18:3"), ("augment=null", "no flip", "19:3")]
)
def test_an_overlay_that_makes_two_arms_equal(setting: str, arm: str, at: str, tmp_path: Path) -> None:
    text = SOUND if setting.startswith("epochs") else SOUND.replace("hflip: null", "hflip: {p: 0.1}")
    path = write(tmp_path, text)
    message = f"is the same recipe as 'plain' under '{setting}'; overlay less, or scale: {{times: 2}}"
    assert problems_of(path, settings=(setting,)) == [(f"{path}:{at}", f"arms.{arm}", message)]


def test_an_overlay_does_not_hide_what_is_wrong_with_a_study(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND.replace("epochs: 4", "epochs: -1"))
    assert problems_of(path, profile="pilot") == problems_of(path)


PROFILES = {
    "- quick": (":1:1", "", "is not a profile; a profile is a mapping: profile: NAME, recipe: {...}"),
    "": ("", "", "is empty; a profile is a mapping"),
    "seeds: 2": (":1:1", "profile", "is required, such as `profile: quick`"),
    "profile: quick": (":1:1", "profile", "changes nothing; give it `recipe`, `seeds` or both"),
    "profile: Quick": (":1:1", "profile", "must be lower-case letters"),
    "profile: pilot\nseeds: 2": (":1:1", "profile", "'pilot' is the name of a built-in profile; choose another"),
    "profile: quick\nrecipes: {}": (":2:1", "recipes", "did you mean 'recipe'?"),
    "profile: quick\nepochs: 5": (":2:1", "epochs", "it belongs under `recipe`"),
    "profile: quick\nseeds: 0": (":2:1", "seeds", "must be at least 1 (got 0)"),
    "profile: quick\nseeds: {looks: [5]}": (":2:9", "seeds.looks", "needs at least two looks"),
    "profile: quick\nseeds: [1, 1]": (":2:1", "seeds", "lists seed 1 twice"),
    "profile: quick\nrecipe: [1]": (":2:1", "recipe", "must be a mapping (got [1])"),
    "profile: quick\nrecipe: {epoch: 1}": (":2:10", "recipe.epoch", "did you mean 'epochs'?"),
    "profile: quick\nrecipe: {lr: 1}": (":2:10", "recipe.lr", "did you mean 'optimizer.lr'?"),
    "profile: quick\nrecipe: {epochs: {times: 0}}": (":2:19", "recipe.epochs.times", "must be a number above 0"),
    "profile: quick\nrecipe:\n  model:\n    dpth?: 3": (":4:5", "recipe.model.dpth?", "no model has an option 'dpth'"),
    "profile: quick\nrecipe: {epochs: 4, epochs: 3}": (":2:21", "recipe.epochs", "is given twice (first in line 2)"),
    "study: quick\nquestion: a": (":1:1", "study", "is for studies; give this file without --profile"),
}


@pytest.mark.parametrize("content", PROFILES)
def test_a_profile_that_is_wrong(content: str, tmp_path: Path) -> None:
    at, where, says = PROFILES[content]
    profile = write(tmp_path, content, "profile.yaml")
    [(origin, path, message)] = problems_of(write(tmp_path, SOUND), profile=str(profile))
    assert (origin, path) == (f"{profile}{at}", where)
    assert says in message


def test_a_profile_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--profile pilt: there is no such profile; did you mean 'pilot'\?"):
        load_overlay("pilt", [])
    with pytest.raises(UsageError, match=r"known: pilot, smoke \(or name a YAML file\)"):
        load_overlay("", [])
    with pytest.raises(StudyError, match="does not exist"):
        load_overlay(str(tmp_path / "none.yaml"), [])


def test_the_sound_study_is_sound(tmp_path: Path) -> None:
    [study] = load_studies([write(tmp_path, SOUND)], load_overlay("pilot", ["seeds=1"]))
    assert study.label == "tiny@pilot,seeds=1"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "cifar_ablate.cli", "run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_command_tells_every_problem_on_a_line_and_touches_nothing(tmp_path: Path) -> None:
    files = {
        "a.yaml": "",
        "b.yaml": SOUND.replace("p: 0.5", "p: 5"),
        "c.yaml": SOUND.replace("longer:", '"\\e[2J":'),
        "d.yaml": SOUND.replace("Does", '"Does'),
    }
    for name, text in files.items():
        write(tmp_path, text, name)
    done = run(tmp_path, *files, "e.yaml")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "a.yaml:",
        "b.yaml:13:21:",
        "c.yaml:18:3:",
        "d.yaml:2:11:",
        "e.yaml:",
    ]
    assert lines[1] == "b.yaml:13:21: recipe.augment.hflip.p: must be at most 1 (got 5)"
    assert not re.search(r"Traceback|\x1b", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--set", "lr=0.1"), ("--profile", "pilit")])
def test_the_command_refuses_options_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(tmp_path, str(write(tmp_path, SOUND)), *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(" ".join(arguments))
    assert "did you mean" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_every_error_of_a_user_has_a_documented_exit_code() -> None:
    kinds = AblateError.__subclasses__()
    assert {kind.exit_code for kind in kinds} <= {1, 2, 130}
    assert len(EDITS) + len(FILES) + len(SETTINGS) + len(OVERLAYS) + len(PROFILES) >= 75
