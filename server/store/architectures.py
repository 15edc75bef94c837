"""What llama.cpp asserts about some architectures instead of reporting it, as of llama.cpp in llama-cpp-python 0.3.36.

An architecture that is missing here is not refused for that; it is only checked less.
"""

# No attention heads in any layer.
RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})

# `GGML_ASSERT(n_embd_head == n_rot)`: keys, values and rotation have one width.
ROTATES_WHOLE_HEADS = frozenset(
    """
    apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 dream ernie4_5
    ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa granitemoe graniteswitch grok grovemoe
    hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada llada-moe llama llama-embed llama4 maincoder
    mellum minicpm mistral3 olmo olmo2 olmoe orion paddleocr pangu-embedded plamo pockettts qwen2 qwen2moe qwen2vl
    qwen3 qwen3moe qwen3tts qwen3vl qwen3vlmoe rnd1 seed_oss smallthinker smollm3 starcoder2 talkie xverse
    """.split()  # noqa: SIM905 - a list would take a line for each
)

# The heads together are as wide as the hidden state.
HEADS_SPAN_WIDTH = frozenset(
    """
    arctic baichuan bert chameleon codeshell cohere2 command-r deepseek dream eurobert grok internlm2 jamba jina-bert-v2
    jina-bert-v3 lfm2 lfm2moe llada-moe nemotron nomic-bert nomic-bert-moe olmo olmo2 olmoe orion phi2 phi3 phimoe plamo
    pockettts qwen2 qwen2moe qwen2vl stablelm starcoder2 xverse
    """.split()  # noqa: SIM905 - a list would take a line for each
)

# Experts in every model.
EXPERTS_ONLY = frozenset({"bailingmoe2", "glm4moe", "grovemoe", "lfm2moe", "llada-moe", "smallthinker"})

# Positions of several dimensions: the rotation is divided among them.
SECTIONED = frozenset({"paddleocr", "qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"})

# A state space twice as wide as the hidden state.
DOUBLE_INNER = frozenset({"granitehybrid", "jamba"})

# How experts are weighted has no default.
CHOOSES_GATING = frozenset({"smallthinker"})
