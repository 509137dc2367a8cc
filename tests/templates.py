"""Chat templates of model families, reduced to what makes each family's different."""

from __future__ import annotations

__all__ = ["CONVERSATIONS", "FAMILIES", "SPECIAL_TOKENS"]

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

FAMILIES = {
    "llama3": (
        "{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
        "{{- bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}{%- set system_message = '' %}{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n' }}"
        "{{- system_message + '<|eot_id|>' }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{- message['content'] | trim + '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}\n"
    ),
    "qwen2": (
        "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
        "{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "qwen3": (
        "{%- set ns = namespace(last=messages | length - 1, searching=true) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages | length - 1) - loop.index0 %}\n"
        "    {%- if ns.searching and message.role == 'user' and message.content is string %}\n"
        "        {%- set ns.searching = false %}{%- set ns.last = index %}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- for message in messages %}\n"
        "    {%- set content = message.content %}\n"
        "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "        {%- if loop.index0 > ns.last %}\n"
        "            {%- set content = '<think>' ~ thought.strip('\\n') ~ '</think>' ~ content %}\n"
        "        {%- endif %}\n"
        "    {%- endif %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
        "    {%- endif %}\n"
        "{%- endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] %s [/INST]' % message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' ~ message['content'] ~ eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
        "{% endfor %}"
    ),
    "falcon": (
        "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ message['role'] | capitalize }}: "
        "{{ message['content'].replace('\\r\\n', '\\n').replace('\\n\\n', '\\n') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
    ),
}

_TURNS = [
    {"role": "user", "content": " 2 + 2?\r\n\n\nQuickly. "},
    {"role": "assistant", "content": "<think>\nEasy: é😀 <b>\n</think>\n\n4"},
    {"role": "user", "content": "{{ bos_token }}{% raw %}"},
]
CONVERSATIONS = [
    _TURNS[:1],
    _TURNS,
    _TURNS[:2],
    [{"role": "system", "content": " Be brief.\n"}, *_TURNS],
]
