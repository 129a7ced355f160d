"""Every word on the figures, by language and figure; another language is another table.

``{name}`` is a place for a value, ``*…*`` marks emphasis. Tests hold all languages to the same
keys and the same places, and find any word on a figure that does not come from here.
"""

from __future__ import annotations

STRINGS: dict[str, dict[str, dict[str, str]]] = {"en": {}}

STRINGS["en"]["patch_splitter"] = {
    "locale": "en",
    "title": "Patch splitter",
    "sentence": (
        "Patch splitter: {name}, {size} × {size} pixels, cut into {grid} × {grid} = {patches} "
        "patches of {P} × {P} pixels ({values} values each), read in this order: {order}."
    ),
    "image": "Picture",
    "own_picture": "Choose a file…",
    "own_named": "yours: {name}",
    "private": "Your own (it never leaves this page)",
    "unreadable": "{name} is not a picture that this browser can read.",
    "patch_size": "Patch size, in pixels",
    "order": "Reading order",
    "order_raster": "row by row",
    "order_column": "by column",
    "order_snake": "snake",
    "order_shuffled": "shuffled",
    "shuffle": "Shuffle",
    "lead": (
        "{size} × {size} pixels in squares of {P} × {P}: {grid} × {grid} = "
        "*{patches} patches*, with the class token *{tokens} tokens*."
    ),
    "picture": "The picture",
    "picture_label": "The picture, cut into patches. The arrow keys move to the next patch.",
    "sequence": "The sequence",
    "sequence_label": (
        "The patches in reading order, line by line. Left and right arrow keys move along the "
        "sequence, up and down arrow keys to the next line."
    ),
    "class_token": "class token",
    "where": (
        "*Token {token}* of 0–{patches}: row {row}, column {column} of the picture, "
        "pixels {x0}–{x1} across and {y0}–{y1} down."
    ),
    "sizes": (
        "Flattened: 3 × {P} × {P} = {values} values. One linear layer makes {dim} numbers of them."
    ),
    "flattened": "Its pixels as one vector",
    "embedding": "Its embedding: vector × weights",
    "bars_label": "The embedding of the chosen patch as bars",
    "scale": "Longest bar: {largest}. {weights}.",
    "trained": "Trained weights",
    "untrained": "Untrained, random weights",
    "sees": "What the model sees",
    "positions": "add position vectors",
    "bag_label": "Patches sorted from dark to bright, as the model sees them",
    "bag_without": (
        "A bag of patches. Attention does not know which came first: sorted here from dark to "
        "bright, the bag is the same for every reading order."
    ),
    "bag_with": (
        "The same bag, but each patch now carries the number of its place. "
        "Shuffle, and the numbers change hands."
    ),
    "bag_all": "All patches of the picture.",
    "bag_some": "{shown} of the {patches} patches, evenly spaced from darkest to brightest.",
    "meter": "How far the reading order moves the class output",
    "meter_without": "no positions",
    "meter_with": "with positions",
    "verdict_raster": "Reading row by row is what we compare with. Change the order.",
    "verdict_without": "The order changed; the class output did not. It cannot tell places apart.",
    "verdict_with": "The order changed, and the class output with it: the model can tell places.",
    "numbers": "The numbers",
    "numbers_box": "Pixels",
    "numbers_flattened": "Vector, first 12 (0–255)",
    "numbers_embedding": "Embedding",
    "numbers_order": "Order, first 12 patches",
    "numbers_change": "Change of class output",
    "box": "x {x0}–{x1}, y {y0}–{y1}",
    "change": "{without} without positions, {with} with positions",
    "about": "How this is computed",
    "about_text": (
        "Pixel values are scaled to [0, 1], normalised, and multiplied by the projection. The "
        "tokens, with or without position vectors, pass a layer norm and one self-attention head "
        "with random weights; y is what the class token gets. The bars show "
        "‖y(this order) − y(row by row)‖ / ‖y(row by row)‖. The position vectors are random too: "
        "the effect needs no training. Everything runs in your browser."
    ),
}

STRINGS["en"]["token_calculator"] = {
    "locale": "en",
    "title": "Token calculator",
    "sentence": (
        "Token calculator: a {size} × {size} image in patches of {P} × {P} is {grid} × {grid} = "
        "{patches} patches, {tokens} tokens with the class token; {values} values per patch, "
        "{gmacs} billion multiply-adds for {model}."
    ),
    "sentence_uneven": (
        "Token calculator: patches of {P} × {P} pixels do not fit a {size} × {size} image; "
        "{rest} pixels are left over on each side."
    ),
    "image_size": "Image size",
    "pixels": "{value} px",
    "patch_size": "Patch size, in pixels",
    "model": "Model",
    "preset": "{name}: width {dim}, {depth} layers",
    "custom": "width {dim}, {depth} layers",
    "lead": (
        "{size} ÷ {P} = {grid} patches a side, {grid} × {grid} = *{patches} words* "
        "of {P} × {P} pixels."
    ),
    "uneven": (
        "Patches of {P} pixels do not fill {size} pixels: {grid} fit in a row and {rest} are left "
        "over (hatched). Resize the image to {below} or {above}."
    ),
    "too_small": "A patch of {P} pixels is larger than the image of {size}. Choose a larger image.",
    "drawing_label": "A square image of {size} pixels with a grid of {grid} × {grid} patches",
    "fact_tokens": "tokens, class token included",
    "fact_values": "values per patch, 3 × {P} × {P}",
    "fact_pairs": "attention pairs per head and layer",
    "fact_macs": "billion multiply-adds (GMAC) per image",
    "cost": "Where the multiply-adds go",
    "projection": "patch projection {share}",
    "linear": "linear layers {share}",
    "attention": "attention between tokens {share}",
    "share": "{value} %",
    "chart": "Cost as the image grows",
    "chart_label": (
        "Multiply-adds against image size: linear layers and projection, and attention between "
        "tokens. At {size} pixels: {linear} and {attention} billion."
    ),
    "chart_x": "image size (px)",
    "chart_y": "GMAC",
    "chart_linear": "linear layers",
    "chart_attention": "attention",
    "crossing": (
        "Attention between tokens costs as much as the linear layers when there are six times as "
        "many tokens as the width: {tokens} tokens here, an image of about {size} pixels."
    ),
    "examples": "Sizes from the papers",
    "example": "{size} / {P}",
    "words": (
        "“16 × 16 words” in ViT's title is the size of one word, in pixels, not their number: "
        "an image of 224 pixels has 14 × 14 = 196 of them. 256 words need an image of 256 pixels, "
        "or patches of 14."
    ),
    "about": "The formula",
    "about_text": (
        "N = (R / P)² patches, T = N + 1 tokens. Multiply-adds: N · 3P² · D for the projection, "
        "L · 12 T D² for the linear layers, L · 2 T² D for attention between tokens; the "
        "classifier is left out. One multiply-add is two floating-point operations."
    ),
}


STRINGS["en"]["attention_distance"] = {
    "locale": "en",
    "title": "Attention-distance map",
    "sentence": (
        "Attention-distance map: {model}, {name}, layer {layer} of {layers}, head {head} of "
        "{heads}: mean attention distance {distance} pixels; uniform attention would give "
        "{uniform} pixels."
    ),
    "sentence_rollout": (
        "Attention-distance map: {model}, {name}, rollout: what reaches the {reader} through "
        "layers 1 to {layer} of {layers}, all heads together."
    ),
    "image": "Picture",
    "model": "Weights",
    "view": "Who looks",
    "view_patch": "one patch",
    "view_class": "class token",
    "view_rollout": "rollout",
    "lead": (
        "Layer {layer}, head {head}: mean attention distance *{distance} px*. "
        "Uniform attention would give {uniform} px."
    ),
    "lead_rollout": (
        "Rollout: what reaches the *{reader}* through layers 1 to *{layer}*, all heads together."
    ),
    "reader_class": "class token",
    "reader_average": "average of all patches",
    "chart": "How far every head looks",
    "chart_label": (
        "Mean attention distance of every head against depth. Layer {layer}, head {head}: "
        "{distance} pixels. Left and right arrow keys change the layer, up and down arrow keys "
        "go to the head of this layer with the next larger or smaller distance."
    ),
    "chart_x": "layer",
    "chart_y": "distance (px)",
    "uniform": "uniform attention: {distance} px",
    "this_head": "{name}, this head: {distance} px",
    "where_patch_title": "Where the patch looks",
    "where_class_title": "Where the class token looks",
    "where_rollout_title": "Where the flow comes from",
    "picture_label": (
        "The picture with the attention as heat. The arrow keys move to the next query patch."
    ),
    "percent": "{value} %",
    "scale": "share per patch",
    "ring_query": "mean distance of this patch",
    "ring_uniform": "under uniform attention",
    "readout_patch": (
        "*Patch in row {row}, column {column}*: mean distance *{distance} px*; uniform attention "
        "would give {uniform} px."
    ),
    "readout_class": "*The class token* has no place on the picture, so it has no distance.",
    "readout_rollout": (
        "Each layer passes on half of what a token had and half of what it attended to. "
        "Choose a deeper layer to follow the flow on."
    ),
    "most": "The most goes to row {row}, column {column}: {share} %.",
    "most_rollout": "The most comes from row {row}, column {column}: {share} %.",
    "left_out": (
        "The class token's share, {share} %, is left out; the patches' shares add up to 100 %."
    ),
    "left_out_two": (
        "The share of the class and distillation tokens, {share} %, is left out; the patches' "
        "shares add up to 100 %."
    ),
    "numbers": "The numbers",
    "numbers_head": "This head",
    "numbers_query": "This patch",
    "numbers_weights": "Shares of the patches, first 12",
    "numbers_sum": "Sum over all tokens",
    "compared": "{value} px; uniform attention {uniform} px",
    "table": "Mean attention distance, in pixels",
    "table_layer": "Layer",
    "table_head": "Head {head}",
    "about": "How this is computed",
    "about_text": (
        "The attention was recorded from the models on the pictures shown. The distance of a "
        "query patch i is the sum over all patches j of a_ij ‖i − j‖ P, with itself at distance "
        "0; learned tokens are dropped and the rest made to sum to 1. A head's distance is the "
        "mean over all query patches of this picture. Rollout multiplies the layers' matrices "
        "½ A + ½ I, with A the mean over heads. It shows where the flow of attention could come "
        "from, not what the model's answer depends on."
    ),
}

STRINGS["en"]["families"] = {
    "locale": "en",
    "title": "Five families",
    "sentence": (
        "Five families: {family}, layer {layer} of {layers}, on a picture of {patches} patches "
        "and its caption of {words} words, “{caption}”. By then {known} of {pairs} pairs of "
        "tokens can have influenced each other."
    ),
    "pair": "Picture and caption",
    "family": "Family",
    "family_single_stream": "single-stream",
    "family_dual_stream": "dual-stream",
    "family_dual_encoder": "dual encoder",
    "family_fusion": "fusion",
    "family_mixture_of_experts": "mixture of experts",
    "about_single_stream": (
        "Words and patches are one sequence from the first layer on, with one set of weights, as "
        "in VisualBERT, UNITER and ViLT."
    ),
    "about_dual_stream": (
        "Each kind first has layers of its own; then both streams look at each other and at "
        "themselves in turn, as in LXMERT."
    ),
    "about_dual_encoder": (
        "Two networks that never meet. Only one number, a similarity, joins their outputs, as in "
        "CLIP."
    ),
    "about_fusion": (
        "Words and patches are read apart; then the words go on and read the finished patches, "
        "which never learn of them, as in ALBEF."
    ),
    "about_mixture_of_experts": (
        "All tokens share the attention; each kind then has an MLP of its own, its expert, as in "
        "the lower layers of VLMo."
    ),
    "layer": "Layer",
    "layer_number": "Layer {layer}",
    "layer_name": "Layer {layer}: {kind}",
    "kind_together": "every token looks at all tokens",
    "kind_apart": "words look at words, patches at patches",
    "kind_swap": "words look at patches, patches at words",
    "kind_words": "words look at words, the patches wait",
    "kind_read": "words look at patches, the patches wait",
    "think_both": "One MLP for all tokens.",
    "think_apart": "An MLP for words, another for patches.",
    "think_words": "An MLP for the words only.",
    "think_none": "No MLP in this layer.",
    "view": "Show",
    "view_looks": "who looks at whom",
    "view_reach": "who can have influenced whom",
    "lead_looks": "Layer {layer} of {layers}: *{kind}*. {think}",
    "lead_reach": (
        "After layer {layer} of {layers}, *{known} %* of all pairs of tokens can have influenced "
        "each other."
    ),
    "word": "The caption: choose a word",
    "picture": "The picture: choose a patch",
    "picture_label": (
        "The picture, cut into patches. Chosen: {token}. The arrow keys move to the next patch."
    ),
    "matrix_looks": "Attention: row looks at column",
    "matrix_reach": "Influence: column has reached row",
    "matrix_label": (
        "A matrix with a row and a column for each word and each patch, words first. Chosen row: "
        "{token}. Up and down arrow keys move to the next row."
    ),
    "words": "words",
    "patches": "patches",
    "token_word": "word {number}, “{word}”",
    "token_patch": "patch in row {row}, column {column}",
    "readout_looks": (
        "*{token}* gives {words} % of its attention to words and {patches} % to patches. Most, "
        "{most} %, goes to {target}."
    ),
    "readout_idle": "*{token}* does not look around in this layer: it stays as it was.",
    "readout_reach": (
        "*{token}* can have been influenced by {words} of {all_words} words and {patches} of "
        "{all_patches} patches. It can have influenced {heard_words} words and {heard_patches} "
        "patches."
    ),
    "mass": "How attention divides between words and patches in this layer",
    "mass_from": "who looks",
    "mass_at": "at {kind}",
    "percent": "{value} %",
    "nothing": "–",
    "pair_cost": "What one pair costs",
    "num_words": "Words",
    "patch_grid": "Patches",
    "grid": "{grid} × {grid} = {patches}",
    "cost_family": "family",
    "cost_parameters": "weights",
    "cost_attention": "attention",
    "cost_total": "all",
    "millions": "{value} M",
    "giga": "{value} GMAC",
    "cost_note": (
        "The layers above at BERT-base's width, {dim}, embeddings left out. Attention is the part "
        "that words and patches pay for looking at each other; all includes the linear layers. "
        "1 GMAC is a billion multiply-adds."
    ),
    "search_cost": "What a search costs",
    "search_lead": (
        "Score each of {captions} captions with each of {images} pictures: *{pairs} pairs*."
    ),
    "num_images": "Pictures",
    "num_captions": "Captions",
    "top_k": "Re-rank the best k",
    "examples": "Test sets from the papers",
    "example": "{name}: {images} × {captions}, k = {k}",
    "not_a_count": "Allowed are whole numbers from {low} to {high}.",
    "search_alone": "runs on one caption or picture",
    "search_pairs": "runs on a pair",
    "search_total": "multiply-adds",
    "rerank": "fusion, best k only",
    "search_note": (
        "What a token's layers compute before the first look at the other kind is computed once, "
        "kept and used again; the rest is computed for each pair. Re-ranking scores all pairs by "
        "the similarity of the two separate parts first, then runs the fusion layers on the best k "
        "captions of each picture and the best k pictures of each caption. The similarities "
        "themselves, one product of two vectors a pair, are left out."
    ),
    "unit_9": "{value} G",
    "unit_12": "{value} T",
    "unit_15": "{value} P",
    "unit_18": "{value} E",
    "unit_21": "{value} Z",
    "about": "How this is computed",
    "about_text": (
        "The five networks are toys with random weights: who can look at whom is the design's "
        "doing and true of any weights, the shades are not. Their attention on this pair was "
        "recorded, mean over the heads. Who can have influenced whom follows from it: a token "
        "knows itself, and after each layer also what those knew that it looked at. Weights and "
        "multiply-adds were counted on the same networks made {dim} wide."
    ),
}

STRINGS["en"]["similarity_matrix"] = {
    "locale": "en",
    "title": "Similarity matrix",
    "sentence": (
        "Similarity matrix: {pictures} pictures × {captions} captions at temperature "
        "{temperature}. Contrastive loss {loss}; {found} of {pictures} pictures are most similar "
        "to their own caption."
    ),
    "temperature": "Temperature",
    "temperature_value": "{temperature} (cosines × {scale})",
    "learned": "Learned: {temperature}",
    "view": "Show",
    "view_image_to_text": "picture → caption",
    "view_text_to_image": "caption → picture",
    "view_cosine": "cosine",
    "gradients": "show where the loss pushes",
    "lead": (
        "Loss *{loss}*: by rows {rows}, by columns {columns}. Equal similarities would give "
        "{chance}."
    ),
    "swapped": "With the pairs as given it is {given}.",
    "unswapped": "These are the pairs as given.",
    "note_image_to_text": "Softmax over each row: which caption belongs to this picture?",
    "note_text_to_image": "Softmax over each column: which picture belongs to this caption?",
    "note_cosine": "Cosines, before the temperature; the palest cell is the least similar.",
    "matrix_label": (
        "Pictures in rows, captions in columns. Chosen: {picture} and “{caption}”, {value}. The "
        "arrow keys choose another cell, Enter makes its caption and picture a pair."
    ),
    "key_pair": "a pair",
    "key_chosen": "chosen cell",
    "key_up": "lowering the loss raises it",
    "key_down": "lowering the loss lowers it",
    "picture_name": "Picture {number}, {name}",
    "chosen_pair": "*{picture}* and “{caption}”: they are a pair.",
    "chosen_other": "*{picture}* and “{caption}”: not a pair.",
    "cosine": "Cosine",
    "logit": "Logit, cosine × {scale}",
    "to_text": "Probability among the row's captions",
    "to_image": "Probability among the column's pictures",
    "term": "Its term of the loss",
    "no_term": "none: it stands in the sums only",
    "gradient": "Gradient of its logit",
    "pairs": "The pairs",
    "pairs_hint": "Drag a caption to another picture: the two change places. Or choose it here.",
    "assign": "Caption of picture {number}",
    "unpaired": "without a picture",
    "restore": "Restore the pairs",
    "own": "Your own caption",
    "add": "Add",
    "own_wait": "Encoding “{caption}”…",
    "own_needs_kernel": (
        "To add a caption of your own, open this page as a notebook: the text encoder needs a "
        "kernel."
    ),
    "own_problem": "It could not be added: {problem}",
    "table": "All numbers",
    "table_caption": "Present view, and below each value the gradient of its logit",
    "table_picture": "picture",
    "about": "How this is computed",
    "about_text": (
        "All is computed here from the features: cosines of the unit vectors, times 1 / "
        "temperature, are the logits. The loss is the mean of two cross-entropies, one that picks "
        "each picture's caption among its row and one that picks each caption's picture among its "
        "column. The gradient of a logit is ((p − y) + (q − y)) / 2B: p and q are its two "
        "probabilities, y is 1 for a pair and else 0, and B is the number of pairs. A caption "
        "without a picture stands in the rows only. The triangles' areas follow the size of the "
        "gradient, relative to the largest one."
    ),
}

STRINGS["en"]["loss_laboratory"] = {
    "locale": "en",
    "title": "Loss laboratory",
    "sentence": (
        "Loss laboratory: {pairs} pictures and their captions on the unit circle, {objective}, "
        "temperature {temperature}. Loss {loss}, alignment {alignment}, uniformity {uniformity}."
    ),
    "objective": "Loss",
    "objective_softmax": "softmax (InfoNCE)",
    "objective_sigmoid": "sigmoid (SigLIP)",
    "temperature": "Temperature",
    "temperature_value": "{temperature} (cosines × {scale})",
    "bias": "Bias",
    "rate": "Step size",
    "lead_softmax": "Loss *{loss}*. Equal similarities would give {chance}.",
    "lead_sigmoid": "Loss *{loss}*, the sum over all pairs of points divided by {pairs}.",
    "circle_label": (
        "The unit circle with pictures as squares and captions as discs; a pair has one number "
        "and one colour. Chosen: {point}, at {angle}°. Left and right arrow keys move it, up and "
        "down arrow keys choose another."
    ),
    "point": "Chosen point",
    "point_image": "{name}: picture {number}",
    "point_text": "{name}: caption {number}",
    "angle": "Its angle",
    "angle_value": "{angle}°",
    "step": "Gradient step",
    "run": "Run",
    "run_still": "{steps} steps",
    "pause": "Pause",
    "reset": "Reset",
    "seed": "Seed",
    "fact_loss": "loss",
    "fact_alignment": "alignment: mean squared distance within pairs",
    "fact_uniformity": "uniformity: lower is more evenly spread",
    "fact_steps": "gradient steps since the reset",
    "forces": "Forces on the chosen point",
    "pull": "Pull of its partner",
    "push": "Push of all others",
    "net": "Together: the negative gradient",
    "key_image": "picture",
    "key_text": "caption",
    "key_net": "negative gradient",
    "key_pull": "pull",
    "key_push": "push",
    "scale_note": (
        "An arrow as long as the radius is a gradient of {value}. Lines join the chosen point to "
        "its partner (solid) and to those that push it (dashed); the thicker, the greater the "
        "gradient of the logit."
    ),
    "table": "All numbers",
    "table_caption": "Angle of each point in degrees, and the negative gradient on it",
    "table_point": "point",
    "table_angle": "angle",
    "about": "How this is computed",
    "about_text": (
        "Similarity is the cosine of the angle between two points; divided by the temperature it "
        "is a logit, to which the sigmoid loss adds its bias. InfoNCE lets each picture pick its "
        "caption among all and each caption its picture; the sigmoid loss asks of each picture "
        "and caption on their own whether they belong together. Arrows are the negative "
        "derivative of the loss with respect to a point's angle, drawn along the circle's "
        "tangent. Pictures stand just outside the circle and captions just inside, so that a pair "
        "that has met stays two. A gradient step moves each angle by step size × arrow. Alignment "
        "and uniformity are those of Wang and Isola (2020), with α = 2 and t = 2; uniformity is "
        "the mean of that of the pictures and that of the captions."
    ),
}


def strings_for(figure: str, language: str = "en") -> dict[str, str]:
    """The words of one figure; ValueError if there is no such language."""
    if language not in STRINGS:
        raise ValueError(f"language={language!r}; allowed are {', '.join(sorted(STRINGS))}")
    return dict(STRINGS[language][figure])
