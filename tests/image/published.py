"""Configs of published pipelines, as their repositories have them."""

from __future__ import annotations

from typing import Any

_OLDER: dict[str, Any] = {
    "_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate",
    "attention_bias": True, "attention_head_dim": 72, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_num_groups": 32, "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None,
    "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "upcast_attention": False,
    "use_linear_projection": False,
}  # fmt: skip
_PIXART: dict[str, Any] = {
    **_OLDER, "attention_type": "default", "caption_channels": 4096, "cross_attention_dim": 1152,
    "double_self_attention": False, "norm_eps": 1e-06, "norm_type": "ada_norm_single",
}  # fmt: skip
_CROSS, _PLAIN = "CrossAttn{}Block2D", "{}Block2D"
_SD1: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": [*[_CROSS.format("Down")] * 3, _PLAIN.format("Down")],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "out_channels": 4, "sample_size": 64,
    "up_block_types": [_PLAIN.format("Up"), *[_CROSS.format("Up")] * 3],
}  # fmt: skip
_SD2: dict[str, Any] = {
    **_SD1, "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024, "dual_cross_attention": False, "num_class_embeds": None,
    "only_cross_attention": False, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip
_TURBO: dict[str, Any] = {
    **_SD2, "_diffusers_version": "0.24.0.dev0", "addition_embed_type": None,
    "addition_embed_type_num_heads": 64, "addition_time_embed_dim": None,
    "attention_type": "default", "class_embed_type": None, "class_embeddings_concat": False,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "dropout": 0.0,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
    "projection_class_embeddings_input_dim": None, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None, "sample_size": 64, "time_cond_proj_dim": None,
    "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None,
    "transformer_layers_per_block": 1, "upcast_attention": None,
}  # fmt: skip
# name -> config of the denoiser, its parameters
DENOISERS: dict[str, tuple[dict[str, Any], int]] = {
    "facebook/DiT-XL-2-256": (
        {
            **_OLDER, "_diffusers_version": "0.12.0.dev0", "cross_attention_dim": None,
            "norm_type": "ada_norm_zero", "sample_size": 32,
        },
        749_826_464,
    ),
    "PixArt-alpha/PixArt-XL-2-512x512": (
        {**_PIXART, "_diffusers_version": "0.22.0.dev0", "sample_size": 64}, 610_856_096,
    ),
    "PixArt-alpha/PixArt-XL-2-1024-MS": (
        {**_PIXART, "_diffusers_version": "0.22.0.dev0", "sample_size": 128}, 611_349_152,
    ),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": (
        {
            **_PIXART, "_class_name": "PixArtTransformer2DModel", "_diffusers_version": "0.29.0",
            "interpolation_scale": 2, "sample_size": 128, "use_additional_conditions": False,
        },
        610_856_096,
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (_SD1, 859_520_964),
    "stabilityai/stable-diffusion-2-1": (_SD2, 865_910_724),
    "stabilityai/sd-turbo": (_TURBO, 865_910_724),
    "SimianLuo/LCM_Dreamshaper_v7": (
        {
            **_TURBO, **_SD1, "_diffusers_version": "0.20.1", "time_cond_proj_dim": 256,
            "upcast_attention": False, "use_linear_projection": False,
        },
        859_602_884,
    ),
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
    "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
    "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06,
    "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
    "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "torch_dtype": "float32",
    "transformers_version": "4.21.1", "use_cache": True, "vocab_size": 32128,
}  # fmt: skip
CLIP_L: dict[str, Any] = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
