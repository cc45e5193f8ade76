# ruff: noqa: E501 (the lines of templates are as long as they are)
"""Chat templates in the formats that public model families use, written for the tests: how each writes messages, calls and reasoning.

Only the parts that matter here: tools in the system turn, the assistant's turn, and the generation prompt.
"""

CHATML_TOOLS = """{%- if tools %}<|im_start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}"""

HERMES = (
    CHATML_TOOLS
    + """{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{{ m.content }}
{%- for call in m.tool_calls or [] %}
{%- if (loop.first and m.content) or not loop.first %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}
{{- '}\\n</tool_call>' }}
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
)

HERMES_THINKING = HERMES.replace(
    "<|im_start|>assistant\n{{ m.content }}",
    "<|im_start|>assistant\n<think>\n{{ (m.reasoning_content or '').strip('\\n') }}\n</think>\n\n{{ m.content }}",
)

OPENS_THINKING = HERMES.replace(
    "{%- if add_generation_prompt %}<|im_start|>assistant\n", "{%- if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
)

LLAMA3 = """{{- bos_token }}
{%- if tools %}<|start_header_id|>user<|end_header_id|>

{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + ', "id": "' + call.id + '"}' }}
{%- if not loop.last %}{{ ', ' }}{% endif %}
{%- endfor %}{{ ']' + eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""

MISTRAL_V11 = (
    MISTRAL.replace("{{- '[TOOL_CALLS] [' }}", "")
    .replace(
        """{{- '{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + ', "id": "' + call.id + '"}' }}
{%- if not loop.last %}{{ ', ' }}{% endif %}""",
        "{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + (call.function.arguments | tojson) }}",
    )
    .replace("{%- endfor %}{{ ']' + eos_token }}", "{%- endfor %}{{ eos_token }}")
)

DEEPSEEK = """{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- elif m.tool_calls %}{{ '<｜Assistant｜>' + (m.content or '') + '<｜tool▁calls▁begin｜>' }}
{%- for call in m.tool_calls %}{% if not loop.first %}{{ '\\n' }}{% endif %}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{{ '<｜tool▁calls▁end｜>' + eos_token }}
{%- else %}{{ '<｜Assistant｜>' + m.content + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

DEEPSEEK_V31 = (
    DEEPSEEK.replace(
        "'<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```<｜tool▁call▁end｜>'",
        "'<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜>'",
    )
    .replace("{% if not loop.first %}{{ '\\n' }}{% endif %}", "")
    .replace("<think>\\n", "</think>")
)

QWEN_CODER = (
    CHATML_TOOLS
    + """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>\\n' }}{{ value if value is string else (value | tojson) }}{{ '\\n</parameter>\\n' }}
{%- endfor %}{{ '</function>\\n</tool_call>' }}
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
)

GLM = """[gMASK]<sop>{% if tools %}<|system|>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ m.content }}
{%- else %}<|assistant|>
{%- if m.reasoning_content %}{{ '\\n<think>' + m.reasoning_content + '</think>' }}{% else %}{{ '\\n<think></think>' }}{% endif %}
{%- if m.content %}{{ '\\n' + m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{ '\\n<tool_call>' + call.function.name }}
{% for key, value in call.function.arguments | items %}<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else (value | tojson) }}</arg_value>
{% endfor %}</tool_call>{% endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

PYTHONIC = """{{- bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}{{ '<|start|>' + m.role + '<|sep|>' }}
{%- if m.tool_calls %}[
{%- for call in m.tool_calls %}{{ call.function.name + '(' }}
{%- for key, value in call.function.arguments | items %}{{ key + '=' }}{{ value | tojson }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ')' }}{% if not loop.last %}{{ ', ' }}{% endif %}
{%- endfor %}]
{%- else %}{{ m.content }}{% endif %}{{ '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|sep|>' }}{% endif %}"""

COMMAND_R = """{{- bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + '<|END_OF_TURN_TOKEN|>' }}
{%- else %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
{%- if m.tool_calls %}{{ '<|START_ACTION|>[' }}
{%- for call in m.tool_calls %}
    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% if not loop.last %},{% endif %}
{%- endfor %}
{{ ']<|END_ACTION|>' }}
{%- else %}{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

FUNCTIONARY = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}{{ '<function=' + call.function.name + '>' + (call.function.arguments | tojson) + '</function>' }}{% endfor %}{{ '<|eot_id|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GRANITE = """{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>
{% endif %}{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}
{%- if m.tool_calls %}<|tool_call|>[{% for call in m.tool_calls %}{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}<|end_of_text|>
{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"""

PHI4 = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content or '') }}{% if m.tool_calls %}{{ '<|tool_call|>[' }}{% for call in m.tool_calls %}
{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']<|/tool_call|>' }}{% endif %}{{ '<|end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

MAGISTRAL = MISTRAL.replace(
    "{%- else %}{{ ' ' + m.content + eos_token }}",
    "{%- else %}{{ ('[THINK]' + m.reasoning_content + '[/THINK]' if m.reasoning_content else '') + m.content + eos_token }}",
)

SEED_OSS = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<seed:bos>{{ m.role }}
{% if m.reasoning_content %}<seed:think>{{ m.reasoning_content }}</seed:think>{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}
<seed:tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items %}<parameter={{ key }}>{{ value if value is string else (value | tojson) }}</parameter>
{% endfor %}</function>
</seed:tool_call>{% endfor %}<seed:eos>
{% endfor %}{% if add_generation_prompt %}<seed:bos>assistant
{% endif %}"""

HUNYUAN = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|hy_' + m.role + '|>' + (m.content or '') }}{% if m.tool_calls %}
<tool_calls>
{%- for call in m.tool_calls %}
<tool_call>{{ call.function.name }}
```json
{{ call.function.arguments if call.function.arguments is string else (call.function.arguments | tojson) }}
```
</tool_call>
{%- endfor %}
</tool_calls>{% endif %}{{ '<|im_end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|hy_assistant|>' }}{% endif %}"""

INTERNLM = """{{- bos_token }}{% if tools %}<|im_start|>system name=<|plugin|>
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<|action_start|><|plugin|>
{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}<|action_end|>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LFM2 = """{{- bos_token }}{% if tools %}<|im_start|>system
List of tools: {{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{{ '<|tool_call_start|>[' }}
{%- for call in m.tool_calls %}{{ call.function.name + '(' }}
{%- for key, value in call.function.arguments | items %}{{ key + '=' }}{{ value | tojson }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ')' }}{% if not loop.last %}{{ ', ' }}{% endif %}
{%- endfor %}{{ ']<|tool_call_end|>' }}{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

MINIMAX = """{% if tools %}]~b]system
{{ tools | tojson }}[e~[
{% endif %}{% for m in messages %}]~b]{{ 'ai' if m.role == 'assistant' else m.role }}
{{ m.content }}{% if m.tool_calls %}
<minimax:tool_call>
{%- for call in m.tool_calls %}
<invoke name="{{ call.function.name }}">
{%- for key, value in call.function.arguments | items %}
<parameter name="{{ key }}">{{ value if value is string else (value | tojson) }}</parameter>
{%- endfor %}
</invoke>
{%- endfor %}
</minimax:tool_call>{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}]~b]ai
{% endif %}"""

NEMOTRON = """{% if tools %}<AVAILABLE_TOOLS>{{ tools | tojson }}</AVAILABLE_TOOLS>{% endif %}{% for m in messages %}{{ '<SPECIAL_' + m.role + '>' + m.content }}
{%- if m.tool_calls %}{{ '<TOOLCALL>[' }}{% for call in m.tool_calls %}{{ '{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments if call.function.arguments is string else (call.function.arguments | tojson) }}{{ '}' }}
{%- if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']</TOOLCALL>' }}{% endif %}{{ '<|im_end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<SPECIAL_assistant>' }}{% endif %}"""

KIMI = """{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}
{%- for m in messages %}{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' + (m.content or '') }}
{%- if m.tool_calls %}<|tool_calls_section_begin|>
{%- for call in m.tool_calls %}<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
{%- if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}<|tool_call_end|>
{%- endfor %}<|tool_calls_section_end|>{% endif %}<|im_end|>
{%- endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""

JAMBA = """{{- bos_token }}{% if tools %}<tool_definitions>{{ tools | tojson }}</tool_definitions>{% endif %}{% for m in messages %}{{ '<|bom|><|' + m.role + '|> ' + m.content }}
{%- if m.tool_calls %}{{ '<tool_calls>[' }}{% for call in m.tool_calls %}
{{- '\\n  {"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}' }}{% if not loop.last %}{{ ',' }}{% endif %}
{%- endfor %}{{ '\\n]</tool_calls>' }}{% endif %}{{ '<|eom|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|bom|><|assistant|> ' }}{% endif %}"""

QWEN_35 = QWEN_CODER.replace(
    "<|im_start|>{{ m.role }}\n{{ m.content }}",
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}{{ m.content }}",
).replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{{ '<think>\\n' if enable_thinking is not defined or enable_thinking else '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)

GLM_47 = """[gMASK]<sop>{% if tools %}<|system|>{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|user|>' + m.content }}
{%- else %}{{ '<|assistant|>' + ('<think>' + m.reasoning_content if m.reasoning_content else '') + '</think>' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name }}
{%- for key, value in call.function.arguments | items %}<arg_key>{{ key }}</arg_key><arg_value>{{ value if value is string else (value | tojson) }}</arg_value>{% endfor %}</tool_call>
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' + ('</think>' if enable_thinking is defined and not enable_thinking else '<think>') }}{% endif %}"""

DEEPSEEK_V32 = """{{- bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- else %}{{ '<｜Assistant｜>' + (m.reasoning_content or '') + '</think>' + (m.content or '') }}
{%- if m.tool_calls %}{{ '\\n\\n<｜DSML｜function_calls>' }}
{%- for call in m.tool_calls %}{{ '\\n<｜DSML｜invoke name="' + call.function.name + '">' }}
{%- for key, value in call.function.arguments | items %}
{{- '\\n<｜DSML｜parameter name="' + key + '" string="' + ('true' if value is string else 'false') + '">' }}{{ value if value is string else (value | tojson) }}</｜DSML｜parameter>
{%- else %}{{ '\\n' }}{% endfor %}{{ '\\n</｜DSML｜invoke>' }}
{%- endfor %}{{ '\\n</｜DSML｜function_calls>' }}{% endif %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>' }}{% endif %}"""

DEEPSEEK_R1 = DEEPSEEK.replace("{%- elif m.tool_calls %}", "{%- elif m.tool_calls and m.content is none %}")

OLMO_3 = """{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{{ '<function_calls>\\n' }}
{%- for call in m.tool_calls %}{{ call.function.name + '(' }}
{%- for key, value in call.function.arguments | items %}{{ key + '=' }}{{ "'" + value + "'" if value is string else (value | tojson) }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ')' }}{% if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}{{ '\\n</function_calls>' }}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

APERTUS = """{{- bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '_start|>' + m.content }}
{%- if m.tool_calls %}{{ '<|tools_prefix|>[' }}{% for call in m.tool_calls %}{{ '{"' + call.function.name + '": ' + call.function.arguments + '}' }}
{%- if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']<|tools_suffix|>' }}{% endif %}{{ '<|im_end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}"""

XLAM = """{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{{ '[' }}{% for call in m.tool_calls %}{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' }}
{%- else %}{{ m.content | trim }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

STEPFUN = QWEN_35.replace("value if value is string else (value | tojson)", "value | string")
"""Prints what is no text as Python does, not as JSON."""

COHERE_THINKING = """{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + m.role + '|>' }}
{%- if m.role == 'assistant' %}{{ '<|START_THINKING|>' + (m.reasoning_content or '') + '<|END_THINKING|>' }}
{%- if m.tool_calls %}{{ '<|START_ACTION|>[]<|END_ACTION|>' }}{% else %}{{ '<|START_TEXT|>' + m.content + '<|END_TEXT|>' }}{% endif %}
{%- else %}{{ m.content }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|assistant|>' }}{% endif %}"""

GEMMA_4 = """{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{%- if m.reasoning_content and m.tool_calls %}{{ '<|channel>thought\\n' + m.reasoning_content + '\\n<channel|>' }}{% endif %}
{%- for call in m.tool_calls or [] %}{{ '<|tool_call>call:' + call.function.name + '{' }}
{%- for key, value in call.function.arguments | items %}{{ key + ':' + ('<|"|>' + value + '<|"|>' if value is string else (value | tojson)) }}{% if not loop.last %}{{ ',' }}{% endif %}{% endfor %}
{{- '}<tool_call|>' }}{% endfor %}{{ m.content + '<turn|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\\n' + ('<|think|>' if enable_thinking else '<|channel>thought\\n<channel|>') }}{% endif %}"""

GEMMA = """{{- bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + m.content + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

HARMONY_TOOLS = """{% for m in messages %}
{%- if m.tool_calls %}{{ '<|start|>assistant<|channel|>commentary to=functions.' + m.tool_calls[0].function.name + ' <|constrain|>json<|message|>' + (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}
{%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

HARMONY = """{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}
{%- if tools %}{{ '<|start|>developer<|message|># Tools\\n' + (tools | tojson) + '<|end|>' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{ '<|start|>functions.' + called.name + ' to=assistant<|channel|>commentary<|message|>' + (m.content | tojson) + '<|end|>' }}
{%- elif m.role != 'assistant' %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
{%- elif m.tool_calls %}
{%- if m.content and m.thinking %}{{ raise_exception('a message with calls has content or thinking') }}{% endif %}
{%- if m.content or m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' }}{% endif %}
{%- set call = m.tool_calls[0].function %}{% set called.name = call.name %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + (call.arguments | tojson) + '<|call|>' }}
{%- elif loop.last and not add_generation_prompt %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
HARMONY = "{%- set called = namespace(name='') %}" + HARMONY

HARMONY_NAMED_LAST = HARMONY.replace(
    "'<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>'",
    "'<|start|>assistant<|channel|>commentary to=functions.' + call.name + ' <|constrain|>json<|message|>'",
).replace("m.thinking", "m.reasoning_content")

BRACKETED = """{%- for m in messages %}
{%- if m.role != 'assistant' %}{{ '<turn>' + m.role + '<body>' + m.content + '<done>' }}
{%- else %}
{%- if m.reasoning_content %}{{ '<turn>model<part>thoughts<body>' + m.reasoning_content + '<done>' }}{% endif %}
{%- if m.content %}{{ '<turn>model<part>reply<body>' + m.content + '<done>' }}{% endif %}
{%- for call in m.tool_calls or [] %}{{ '<turn>model<part>action for=' + call.function.name + '<body>' + (call.function.arguments | tojson) + '<done>' }}{% endfor %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model' }}{% endif %}"""

CHANNELS = {"harmony": HARMONY, "harmony_named_last": HARMONY_NAMED_LAST, "bracketed": BRACKETED}
CHANNEL_MARKS = [
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|call|>",
    "<|return|>",
    "<turn>",
    "<part>",
    "<body>",
    "<done>",
]
"""Special tokens of the tokenizers that go with CHANNELS; `<|end|>` is one anyway."""

END_TEXTS = [
    "<|im_end|>",
    "<|eot_id|>",
    "</s>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "<seed:eos>",
    "<|user|>",
    "<|eom|>",
    "<turn|>",
]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
WITH_CALLS = {
    "hermes": HERMES,
    "hermes_thinking": HERMES_THINKING,
    "opens_thinking": OPENS_THINKING,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral_v11": MISTRAL_V11,
    "deepseek": DEEPSEEK,
    "deepseek_v31": DEEPSEEK_V31,
    "qwen_coder": QWEN_CODER,
    "glm": GLM,
    "pythonic": PYTHONIC,
    "command_r": COMMAND_R,
    "functionary": FUNCTIONARY,
    "granite": GRANITE,
    "phi4": PHI4,
    "magistral": MAGISTRAL,
    "seed_oss": SEED_OSS,
    "hunyuan": HUNYUAN,
    "internlm": INTERNLM,
    "lfm2": LFM2,
    "minimax": MINIMAX,
    "nemotron": NEMOTRON,
    "jamba": JAMBA,
    "kimi": KIMI,
    "qwen_35": QWEN_35,
    "glm_47": GLM_47,
    "deepseek_v32": DEEPSEEK_V32,
    "deepseek_r1": DEEPSEEK_R1,
    "olmo_3": OLMO_3,
    "apertus": APERTUS,
    "xlam": XLAM,
    "stepfun": STEPFUN,
    "gemma_4": GEMMA_4,
}
