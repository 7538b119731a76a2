"""Chat templates of our own writing, built like those of real models; turns end with ``<|end|>``."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)

# Qwen 3: reasoning of the turns since the last query alone; tags in a content are reasoning too; an empty thought where
# `enable_thinking` is false; tool calls with arguments as an object or as text.
QWEN3 = """
{%- if tools %}
    {{- '<|start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{% endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
    {{- '<|end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|start|>system\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- set ns = namespace(query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|start|>assistant\\n' }}
        {%- if loop.index0 > ns.query and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""".strip()

# DeepSeek R1: everything up to </think> is cut from every answer; calls are written where there is no content, and
# their arguments are joined as text.
R1 = """
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|start|>User: ' + message.content }}{% endif %}
    {%- if message.role == 'assistant' and message.content is not defined %}
        {{- '<|start|>Assistant: ' }}
        {%- for call in message.tool_calls %}
            {{- 'call ' + call.function.name + ' ' + call.function.arguments }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>Assistant: ' + message.content.split('</think>')[-1] + '<|end|>' }}
    {%- endif %}
    {%- if message.role == 'tool' %}{{- '<|start|>Result: ' + message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>Assistant: ' }}{% endif %}
""".strip()

# Llama 3.2: tools in the user's first message, one call a turn, `ipython` for results.
LLAMA = """
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant\\n\\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
        {{- '<|end|>' }}
    {%- elif message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|start|>ipython\\n\\n' + (message.content | tojson) + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '\\n\\n' }}
        {%- if tools is defined and tools and loop.index0 == 0 %}
            {%- for tool in tools %}{{- (tool | tojson(indent=4)) + '\\n\\n' }}{% endfor %}
        {%- endif %}
        {{- message.content | trim }}{{- '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n\\n' }}{% endif %}
""".strip()

# Mistral: roles must alternate, no system message, tools must be wrapped, calls need an id of nine characters.
MISTRAL = """
{%- set turns = namespace(index=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- raise_exception('System role not supported') }}{% endif %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {%- if (message.role == 'user') != (turns.index % 2 == 0) %}
            {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
        {%- endif %}
        {%- set turns.index = turns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.index0 == 0 %}
            {{- '[TOOLS]' }}
            {%- for tool in tools %}{{- tool.function.name + ' ' + (tool.function.parameters | tojson) }}{% endfor %}
            {{- '[/TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[CALLS]' }}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- (call.function | tojson) + call.id }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {{- '[RESULT]' + message.content + message.tool_call_id + '[/RESULT]' }}
    {%- endif %}
{%- endfor %}
""".strip()

# After models for retrieval: documents, and reasoning under another key.
DOCUMENTS = """
{%- for document in documents or [] %}{{- '<|start|>' + document.title + ': ' + document.text + '\\n' }}{% endfor %}
{%- for message in messages %}
    {{- '<|start|>' + message.role + (' ' + message.name if message.name else '') + '\\n' }}
    {%- if message.thinking %}{{- '(' + message.thinking + ')' }}{% endif %}
    {{- message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n' }}{% endif %}
""".strip()

# GLM-4.5: an assistant's turn has no end; calls are written as tags, with an object's arguments one by one.
GLM = r"""
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|user|>\n' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<|assistant|>\n<think></think>' }}
        {%- if message.content.strip() %}{{- '\n' + message.content.strip() }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\n<tool_call>' + call.name }}
            {%- for key, value in call.arguments.items() %}
                {{- '\n<arg_key>' + key + '</arg_key>\n<arg_value>' }}
                {{- value if value is string else value | tojson }}{{- '</arg_value>' }}
            {%- endfor %}
            {{- '\n</tool_call>' }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|observation|>' }}{% endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}
""".strip()
