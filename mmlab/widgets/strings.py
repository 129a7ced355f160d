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
        "To add a caption of your own, open this page as a notebook. The page itself can run the "
        "text encoder of the mini CLIP that comes with mmlab; these vectors are another model's, "
        "and vectors of two models cannot be compared."
    ),
    "own_absent": (
        "You cannot add a caption of your own here: the model that made these vectors is not at "
        "hand, and vectors of two models cannot be compared."
    ),
    "own_before": (
        "For your first caption the text encoder, {size} MB, is loaded; it then runs in this page."
    ),
    "own_loading": "Loading the text encoder, {size} MB…",
    "own_progress": "Share of the text encoder that has been loaded",
    "own_failed": (
        "The text encoder could not be loaded ({problem}). Add the caption again to try once more, "
        "or open this page as a notebook."
    ),
    "own_read": "“{caption}” was read as {tokens}.",
    "own_full": "There are {count} captions already; no more fit.",
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


STRINGS["en"]["masking"] = {
    "locale": "en",
    "title": "Masking",
    "sentence": (
        "Masking: {percent} % of {patches} patches hidden. BERT's way encodes all {patches}, MAE "
        "and FLIP {kept}; FLIP then takes {share} % of the multiply-adds of a whole pair. "
        "Caption: “{caption}”."
    ),
    "ratio": "Hidden share",
    "percent": "{value} %",
    "redraw": "Draw a new mask",
    "seed": "seed {seed}",
    "usual": "{way}: {percent} %",
    "lead": (
        "With {percent} % hidden, the image encoder works on *{patches}* patches in BERT's way and "
        "on *{kept}* in MAE and in FLIP."
    ),
    "word": "Choose a word here, or a patch in a picture",
    "way_bert": "BERT's way",
    "way_mae": "MAE",
    "way_flip": "FLIP",
    "way_short_bert": "BERT",
    "way_short_mae": "MAE",
    "way_short_flip": "FLIP",
    "idea_bert": (
        "Replace, encode all, predict what was hidden. BERT does it to words; BEiT does it to "
        "patches."
    ),
    "idea_mae": "Drop, encode the rest, put mask tokens back for a small decoder, predict pixels.",
    "idea_flip": (
        "Drop, encode the rest, compare the result with the caption. Nothing is predicted."
    ),
    "stage_input": "What is left",
    "stage_encoder": "Image encoder",
    "stage_decoder": "Decoder",
    "stage_output": "What comes out",
    "no_decoder": "There is none.",
    "no_caption": "MAE reads no caption.",
    "mask": "[MASK]",
    "text_bert_input": "{hidden} patches and {words} of {all_words} words replaced",
    "text_bert_encoder": "all {patches} places, mask tokens among them",
    "text_bert_decoder": "none",
    "text_bert_output": "a prediction for the {hidden} patches and {words} words",
    "text_mae_input": "{hidden} patches dropped",
    "text_mae_encoder": "{kept} of {patches} patches, no mask token",
    "text_mae_decoder": "{kept} encoded patches, {hidden} mask tokens",
    "text_mae_output": "pixels of the {hidden} dropped patches",
    "text_mae_output_learned": "pixels for all places, by a trained model",
    "text_flip_input": "{hidden} patches dropped, all words kept",
    "text_flip_encoder": "{kept} of {patches} patches, no mask token",
    "text_flip_decoder": "none",
    "text_flip_output": "two vectors, of the picture and of the caption: do they match?",
    "board": "{text}. Chosen: {token}. The arrow keys move to the next patch.",
    "token_word": "word {number}, “{word}”",
    "token_patch": "patch in row {row}, column {column}",
    "path_bert_patch_hidden": (
        "*{token}* is hidden: a mask token with this position goes through the encoder, and what "
        "comes out must predict the patch."
    ),
    "path_bert_patch_seen": "*{token}* is encoded; nothing is predicted for it.",
    "path_bert_word_hidden": (
        "*{token}* is hidden: [MASK] goes through the text encoder in its place, and what comes "
        "out must predict the word."
    ),
    "path_bert_word_seen": "*{token}* is encoded; nothing is predicted for it.",
    "path_mae_patch_hidden": (
        "*{token}* is dropped. The encoder never sees its place; the decoder gets a mask token "
        "there and must predict its pixels."
    ),
    "path_mae_patch_seen": (
        "*{token}* is encoded and goes on to the decoder. Its pixels are predicted too, but do not "
        "count in the loss."
    ),
    "path_mae_word_none": "*{token}*: there are no words in MAE.",
    "path_flip_patch_hidden": "*{token}* is dropped, and nothing after that knows of its place.",
    "path_flip_patch_seen": (
        "*{token}* is encoded; the average of all encoded tokens becomes the picture's vector."
    ),
    "path_flip_word_all": (
        "*{token}* is encoded by the text encoder, at any share: FLIP hides patches only."
    ),
    "key_mask": "mask token",
    "key_encoded": "encoded token, or prediction",
    "key_hole": "nothing there, nothing computed",
    "key_chosen": "chosen",
    "learned": "A trained MAE's output for this picture is here for:",
    "cost": "What it costs",
    "measure": "Show",
    "measure_compute": "multiply-adds",
    "measure_memory": "memory in training",
    "table": "Costs of the three ways",
    "caption_compute": "Multiply-adds of one forward pass, a picture with its caption",
    "caption_memory": "What the blocks keep for the backward pass, a picture with its caption",
    "column_way": "way",
    "column_encoded": "patches encoded",
    "column_image": "image encoder",
    "column_text": "text encoder",
    "column_decoder": "decoder",
    "column_total": "all",
    "column_share": "share of its own at 0 %",
    "unit_compute": "{value} GMAC",
    "unit_memory": "{value} MB",
    "nothing": "–",
    "note_compute": "1 GMAC is a billion multiply-adds, or two billion FLOPs.",
    "note_memory": "In half precision, with fused attention and without recomputation.",
    "chart_compute": (
        "Lines of the multiply-adds against the hidden share, each as a share of its own at 0 %. "
        "At {percent} %: BERT's way {bert}, MAE {mae}, FLIP {flip}."
    ),
    "chart_memory": (
        "Lines of the memory in training against the hidden share, each as a share of its own at "
        "0 %. At {percent} %: BERT's way {bert}, MAE {mae}, FLIP {flip}."
    ),
    "encoded": "{encoded} of {patches} encoded",
    "about": "How this is computed",
    "about_text": (
        "The three share one image encoder and, where they read the caption, one text encoder, so "
        "that only the way of masking differs. The patch embedding and its positions come before "
        "the dropping, so all patches pay for it; the class token is encoded too. MAE and FLIP "
        "keep the patches with the least random noise, cut to a whole number, as their code does. "
        "Of the words that it chooses, the real BERT leaves one in ten as it was and swaps one in "
        "ten for a random word; here all become [MASK]. FLIP fills captions up to a fixed length "
        "and encodes the padding as well. Heads that predict words or patches after BERT's way are "
        "left out of its cost. Memory counts what a transformer block keeps for the backward "
        "pass, of each token: 8 D + 2 M numbers and a few more, for width D and M in the MLP."
    ),
}


STRINGS["en"]["clip_search"] = {
    "locale": "en",
    "title": "CLIP in the browser",
    "sentence": (
        "CLIP in the browser: {count} pictures ranked for the caption “{caption}”. First comes "
        "{name}, with probability {probability}."
    ),
    "caption": "A caption, in English or Chinese",
    "search": "Search",
    "examples": "Or one of these",
    "before": (
        "For a caption of your own, press Search: the text encoder, {size} MB, is then loaded and "
        "runs in this page. The examples need nothing."
    ),
    "loading": "Loading the model, {size} MB…",
    "progress": "Share of the model that has been loaded",
    "ready": "The text encoder runs in this page. Every letter you type asks it anew.",
    "failed": (
        "The model could not be loaded ({problem}). The examples still work. Search again to try "
        "once more, or open this page as a notebook."
    ),
    "kernel": "no answer from the kernel",
    "tokens": "What the model reads",
    "whole": "Every word is in its vocabulary.",
    "cut": (
        "Not in its vocabulary as a whole, and so read in pieces: {words}. What it makes of rare "
        "pieces is a guess."
    ),
    "unknown": "Unknown: {words}. All that the model reads there is {token}.",
    "dropped": "It reads {read} tokens at most; the last {dropped} are left out.",
    "quoted": "“{word}”",
    "separator": ", ",
    "lead": "“{caption}”: best fits *{name}*, with probability *{probability}* among {count}.",
    "empty": "Type a caption, or choose one of the examples.",
    "view": "Show",
    "view_probability": "probability",
    "view_cosine": "cosine",
    "gallery": "All pictures",
    "gallery_key": "the stronger, the more similar; framed: the first twelve",
    "gallery_label": (
        "The {count} pictures, each the stronger the more similar it is to the caption. Chosen: "
        "{name}. The arrow keys choose another."
    ),
    "nothing": "none",
    "reverse": "The other way round: from a picture to captions",
    "reverse_text": (
        "Choose a picture above or here, or drop one of yours. All names of the pictures, in both "
        "languages, and your caption are ranked for it."
    ),
    "reverse_text_only": (
        "Choose a picture above or here. All names of the pictures, in both languages, and your "
        "caption are ranked for it. A picture of your own cannot be: only the text encoder runs "
        "in this page."
    ),
    "picture": "Picture",
    "own": "Your own (it never leaves this page)",
    "own_button": "Choose a file…",
    "own_named": "yours: {name}",
    "unreadable": "{name} is not a picture that this browser can read.",
    "choose": "No picture is chosen.",
    "chosen": "*{name}*. Your caption, “{caption}”, is number *{place}* of {count}.",
    "chosen_only": "*{name}*. The best of {count} captions:",
    "typed": "your caption",
    "its_name": "its name",
    "about": "How this is computed",
    "about_text": (
        "The caption is cut into word pieces and goes through the text encoder, the picture "
        "through the image encoder; both give a vector of length 1. Their product is the cosine. "
        "The softmax of cosines × {scale}, the factor that the model learned, over all pictures "
        "or all captions is the probability. The vectors of the pictures shown and of the "
        "examples come from PyTorch; everything else is computed here."
    ),
    "about_image": (
        "To save bytes the weights are rounded: to {text} bits in the text encoder, to {image} in "
        "the image encoder."
    ),
    "about_text_only": "To save bytes the weights of the text encoder are rounded to {text} bits.",
    "check": (
        "Check: on the {count} examples, the cosines computed in this page differ from PyTorch's "
        "by at most {difference}."
    ),
}


STRINGS["en"]["transport_alignment"] = {
    "locale": "en",
    "title": "Transport alignment",
    "sentence": (
        "Transport alignment: the words of “{caption}” ({kind}) carried to {places} places of a "
        "picture by {method} with regularisation {regularization}; after {iterations} iterations "
        "the distance is {distance}."
    ),
    "caption": "Caption",
    "matched": "its own caption",
    "other": "another's caption",
    "method": "Method",
    "method_ipot": "IPOT",
    "method_sinkhorn": "Sinkhorn",
    "view": "Show",
    "view_plan": "the plan",
    "view_compare": "compare",
    "regularization": "Regularisation",
    "iterations": "Iterations",
    "step": "One more",
    "play": "Play",
    "lead": "After {iterations} iterations of {method} the transport distance is *{distance}*.",
    "sign_matched": (
        "Picture and caption belong together: the loss counts *+{distance}*, so training makes the "
        "way shorter."
    ),
    "sign_other": (
        "Picture and caption do not belong together: the loss counts *−{distance}*, so training "
        "makes the way longer."
    ),
    "word": "Choose a word",
    "place_patch": "patch in row {row}, column {column}",
    "place_region": "region {number}",
    "readout": (
        "*{word}* sends most, {share} % of its mass, to the {place}; spread evenly each place "
        "would get {even} %."
    ),
    "readout_true": (
        "*{word}* sends most, {share} % of its mass, to the {place}. Its true places, {places} in "
        "number, get {right} %; spread evenly they would get {chance} %."
    ),
    "readout_nothing_true": (
        "*{word}* speaks of no place, yet its mass must go somewhere: most, {share} %, to the "
        "{place}."
    ),
    "flow_label": (
        "Words on the left, the picture on the right, bands of mass between them. Chosen: {word}, "
        "whose widest band goes to the {place}. Up and down arrow keys choose another word."
    ),
    "key_chosen": "gets the most",
    "key_true": "true place",
    "key_target": "what a sum should be",
    "matrix_cost": "Cost",
    "matrix_plan": "Plan",
    "note_cost": "A row for each word, a column for each place; the darker, the dearer.",
    "note_plan": (
        "The darker, the more mass. Bars are its sums: each word sends as much as every other, "
        "and each place should get as much as every other."
    ),
    "cost_label": "The cost of carrying each word to each place, from {low} to {high}.",
    "plan_label": (
        "The plan: how much mass each word sends to each place, with the sums of rows and columns. "
        "{error} of the mass arrives where it should not."
    ),
    "converges": "How the distance converges",
    "chart_label": (
        "Lines of the distance against the number of iterations. At {iterations}: IPOT {ipot}, "
        "Sinkhorn {sinkhorn}."
    ),
    "distance_matched": "Distance, its own caption",
    "distance_other": "Distance, another's caption",
    "loss": "Loss of these pairs",
    "error": "Share of the mass that arrives where it should not",
    "nothing": "–",
    "percent": "{value} %",
    "note_compare": "Where the chosen word goes. Clear is much, veiled is little.",
    "card_plan": "Transport plan",
    "card_attention": "Attention",
    "card_maximum": "FILIP's best place",
    "card_truth": "Truth",
    "card_text_plan": "{share} % to the {place}",
    "card_text_attention": "{share} % to the {place}",
    "card_text_maximum": "all to the {place}, cosine {cosine}",
    "card_text_truth": "{places} true places",
    "card_nothing": "the word speaks of no place",
    "scores": "Against the truth, over the words that speak of a place",
    "score_of": "alignment",
    "score_share": "share on true places",
    "score_hits": "most goes to a true place",
    "score_even": "spread evenly",
    "hits": "{hits} of {count}",
    "similarity": (
        "FILIP's similarity is the mean of these best cosines: {places} from words to places, "
        "{words} from places to words."
    ),
    "table": "All numbers of the plan",
    "table_word": "word",
    "about": "How this is computed",
    "about_text": (
        "The cost is 1 − cosine of the features that a model gave, unless another was passed in. "
        "Every word has the same mass, and so has every place; a plan says how much goes from "
        "where to where, and its distance is mass times cost. IPOT multiplies the last plan by "
        "exp(−cost / regularisation) and scales columns, then rows; it tends to the exact plan at "
        "any regularisation. Sinkhorn does the same from the start each time, so the smoothing "
        "stays. Rows come out exact, columns only in the limit. UNITER and ViLT take 50 iterations "
        "of IPOT at 0.5, weigh the loss by 0.1, and let no gradient through the plan. The loss is "
        "the distance of the matched pair minus that of the mismatched one, over the number of "
        "pairs; the minus stands in both systems' code, not in the papers. FILIP has no plan: "
        "each word keeps its best place, whatever the others took."
    ),
}

STRINGS["en"]["league_table"] = {
    "locale": "en",
    "title": "League table",
    "sentence": (
        "League table, {group}: {rows} rows sorted by {column} ({unit}). In this order: {values}."
    ),
    "sentence_value": "{name} {value}",
    "group": "Show",
    "sort": "Sort by",
    "turn": "Turn the order",
    "families": "Families",
    "pinned": "Baselines stay on top",
    "table": "The table; it scrolls sideways where it does not fit",
    "caption": "{group}: a row for each system, a column for each thing measured",
    "hint": (
        "A button in a column's head sorts by it, and pressed again turns the order. Choose a "
        "cell, or move over the cells with the arrow keys, to see its runs below the table."
    ),
    "system": "system",
    "baseline": "baseline",
    "measured": "{value} ± {half}",
    "seeds": "{count} seeds",
    "seeds_one": "{count} seed",
    "blind": "not above blind",
    "missing": "–",
    "failed": "failed",
    "best": "best first",
    "worst": "worst first",
    "largest": "largest first",
    "smallest": "smallest first",
    "lead": "*{column}*, {order}. First of the systems: *{system}* with {value}; {count} rows.",
    "lead_none": "*{column}*, {order}. No system shown here has a value; {count} rows.",
    "readout": "*{system}*, {column}: *{value}*, the 95 % interval of the mean is {low} to {high}.",
    "readout_one": "*{system}*, {column}: *{value}*. Too few seeds for an interval.",
    "readout_blind": "It is not above what a blind model reaches.",
    "readout_missing": "*{system}*, {column}: not measured.",
    "readout_failed": "*{system}*, {column}: no value. {note}",
    "nobody": "No family is chosen, so there is no row.",
    "run": "seed {seed}: {value}, run",
    "chart": "{column}, drawn",
    "with_unit": "{column} ({unit})",
    "chart_label": (
        "{column} of every shown system, a line each, in the order of the table. Chosen: {system}. "
        "Up and down arrow keys move to the next line."
    ),
    "floor": "blind",
    "key_mean": "mean and its 95 % interval",
    "key_blind": "not above blind",
    "key_seed": "a seed",
    "key_floor": "the best that needs no picture, or no text",
    "how": "How to read this",
    "how_text": (
        "A cell is the mean over seeds ± half of its 95 % interval (Student's t). Every seed is a "
        "training of its own, from the first step. Not above blind means that the interval of the "
        "difference to the best blind baseline does not lie above zero. Rows without a value "
        "come last, whichever way the table is sorted."
    ),
}


def strings_for(figure: str, language: str = "en") -> dict[str, str]:
    """The words of one figure; ValueError if there is no such language."""
    if language not in STRINGS:
        raise ValueError(f"language={language!r}; allowed are {', '.join(sorted(STRINGS))}")
    return dict(STRINGS[language][figure])
