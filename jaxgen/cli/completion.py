"""``jaxgen completion``: a script with which a shell completes the flags of all commands and their values."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module

from jaxgen.cli.common import write_out
from jaxgen.cli.flags import Command, CommandConfig, parse
from jaxgen.cli.help import Flag, Help
from jaxgen.cli.main import COMMANDS, MODULES
from jaxgen.errors import UsageError, choose

DESCRIPTION = """Print a script that completes commands, flags, their values and the folders of runs in a shell.

    source <(jaxgen completion bash)                  in ~/.bashrc
    jaxgen completion zsh > ~/.zfunc/_jaxgen          a folder of $fpath
    jaxgen completion fish > ~/.config/fish/completions/jaxgen.fish

With --plugin, the script also has the names that the plugin defines."""


def completion(args: list[str]) -> None:
    """Parse ``args`` and print the script that they ask for."""
    about = "The shell."
    shell = Flag("shell", str, "", about, "SHELL", positional=True, choices=[*SHELLS])
    _, extra = parse(CommandConfig, args, prog="jaxgen completion", description=DESCRIPTION, extra=[shell])
    if not extra["shell"]:
        raise UsageError(f"Which shell? Give one of: {', '.join(SHELLS)}, as in `jaxgen completion bash`.")
    write_out(SHELLS[choose(extra["shell"], SHELLS, "shell")](flags_by_command()))


main = Command(completion)


def flags_by_command() -> dict[str, list[Flag]]:
    """Command -> its flags. The tasks of ``train`` follow it, as commands of two words."""
    from jaxgen.tasks.registry import DATA

    return {words: flags_of(*words.split()) for words in [*COMMANDS, *(f"train {task}" for task in DATA)]}


def flags_of(command: str, *args: str) -> list[Flag]:
    """The flags of a command with these arguments."""
    module = import_module(f"jaxgen.cli.{MODULES.get(command, command)}")
    try:
        (module.train if command == "train" else module.main.work)([*args, "--help"])
    except Help as shown:
        return [*shown.flags]
    raise AssertionError(f"{command} did not show its help.")


def spellings(flag: Flag) -> list[str]:
    """The spellings of a flag: a switch has an opposite."""
    return [flag.written, *([] if flag.opposite is None else [flag.opposite])]


def pretrained() -> str:
    """The runs that come with jaxgen."""
    from jaxgen.runs.directory import pretrained_runs

    return " ".join(f"pretrained:{name}" for name in pretrained_runs())


def bash(commands: dict[str, list[Flag]]) -> str:
    """The script for bash: the words that may follow the last flag, else file names."""
    tasks = [words.split()[1] for words in commands if " " in words]
    flags, values = [], []
    for words, members in commands.items():
        named = [flag for flag in members if not flag.positional]
        every = " ".join(spelling for flag in named for spelling in spellings(flag))
        flags.append(f"        {shlex.quote(words)}) echo {shlex.quote(every)} ;;")
        for flag in named:
            if flag.names_run:
                values.append(f"        {shlex.quote(f'{words} {flag.written}')}) echo @runs ;;")
            elif flag.choices:
                choices = shlex.quote(" ".join(flag.choices))
                values.append(f"        {shlex.quote(f'{words} {flag.written}')}) echo {choices} ;;")
        if any(flag.positional and flag.names_run for flag in members):
            values.append(f"        {shlex.quote(f'{words} ')}) echo @runs ;;")
    return BASH.format(
        commands=" ".join(COMMANDS),
        pretrained=pretrained(),
        tasks=" ".join(tasks),
        cases="|".join(tasks),
        shells=" ".join(SHELLS),
        flags="\n".join(flags),
        values="\n".join(values),
    )


def zsh(commands: dict[str, list[Flag]]) -> str:
    """The script for zsh, with the first sentence of each help."""
    parts = []
    for words, members in commands.items():
        lines = [f"            {shlex.quote(spec)} \\" for flag in members for spec in zsh_specs(flag)]
        parts.append(
            "\n".join([f"        {shlex.quote(words)})", "            _arguments -S \\", *lines, "            ;;"])
        )
    tasks = [words.split()[1] for words in commands if " " in words]
    listed = "\n".join(f"        {shlex.quote(f'{name}:{text}')}" for name, text in COMMANDS.items())
    return ZSH.format(
        pretrained=pretrained(), commands=listed, cases="|".join(tasks), tasks=" ".join(tasks), parts="\n".join(parts)
    )


def zsh_specs(flag: Flag) -> Iterator[str]:
    """A flag as arguments of zsh's ``_arguments``."""
    action = "_jaxgen_runs" if flag.names_run else f"({' '.join(flag.choices)})" if flag.choices else "_files"
    if flag.positional:
        yield f"*:{flag.name}:{action}"
        return
    text = re.sub(r"([\[\]:\\])", r"\\\1", first_sentence(flag))
    for spelling in spellings(flag):
        value = "" if flag.is_switch else f":{flag.name}:{action}"
        yield f"*{spelling}[{text}]{value}"


def fish(commands: dict[str, list[Flag]]) -> str:
    """The script for fish, with the first sentence of each help."""
    tasks = " ".join(words.split()[1] for words in commands if " " in words)
    lines = [
        f"complete -c jaxgen -n __fish_use_subcommand -f -a {name} -d {fish_quote(text)}"
        for name, text in COMMANDS.items()
    ]
    lines.append(f"complete -c jaxgen -n '__jaxgen_is train' -f -a {fish_quote(tasks)} -d task")
    lines.append(f"complete -c jaxgen -n '__jaxgen_is completion' -f -a {fish_quote(' '.join(SHELLS))}")
    for words, members in commands.items():
        for flag in members:
            value = "-r"
            if flag.names_run:
                value = "-x -a '(__jaxgen_runs)'"
            elif flag.choices:
                value = f"-x -a {fish_quote(' '.join(flag.choices))}"
            if flag.positional:
                if flag.names_run:
                    lines.append(f"complete -c jaxgen -n '__jaxgen_is {words}' -a '(__jaxgen_runs)'")
                continue
            about = fish_quote(first_sentence(flag))
            for spelling in spellings(flag):
                given = "" if flag.is_switch else f" {value}"
                lines.append(
                    f"complete -c jaxgen -n '__jaxgen_is {words}' -l {fish_quote(spelling[2:])}{given} -d {about}"
                )
    return FISH.format(pretrained=pretrained(), lines="\n".join(lines), tasks=tasks)


def first_sentence(flag: Flag) -> str:
    """The beginning of the help of a flag."""
    return re.split(r"(?<=[.;])\s", " ".join(flag.help.split()), maxsplit=1)[0].rstrip(".;")


def fish_quote(text: str) -> str:
    """``text`` as a word of fish, in whose quotes a backslash escapes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


BASH = """\
# Completion of jaxgen for bash: source <(jaxgen completion bash)

_jaxgen_runs() {{
    local each
    for each in runs/*/config.json; do
        [[ -e $each ]] && printf '%s\\n' "${{each%/config.json}}"
    done
    printf '%s\\n' {pretrained}
}}

_jaxgen_flags() {{
    case $1 in
{flags}
    esac
}}

_jaxgen_values() {{
    case $1 in
{values}
    esac
}}

_jaxgen() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} flag='' first=2 words each i
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '{commands} --help --version' -- "$current")
        return
    fi
    if [[ $command == train ]] && ((COMP_CWORD > 2)); then
        case ${{COMP_WORDS[2]}} in {cases}) command="train ${{COMP_WORDS[2]}}" first=3 ;; esac
    fi
    for ((i = COMP_CWORD - 1; i >= first; i--)); do
        if [[ ${{COMP_WORDS[i]}} == --* ]]; then
            flag=${{COMP_WORDS[i]}}
            break
        fi
    done
    if [[ $current == -* ]]; then
        words=$(_jaxgen_flags "$command")
    elif [[ $command == train ]] && ((COMP_CWORD == 2)); then
        words='{tasks}'
    elif [[ $command == completion ]]; then
        words='{shells}'
    else
        words=$(_jaxgen_values "$command $flag")
    fi
    if [[ $words == @runs ]]; then  # compgen would expand what stands in a name
        while IFS= read -r each; do
            [[ $each == "$current"* ]] && COMPREPLY+=("$(printf '%q' "$each")")
        done < <(_jaxgen_runs)
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}

complete -o default -F _jaxgen jaxgen
"""

ZSH = """\
#compdef jaxgen
# Completion of jaxgen for zsh: jaxgen completion zsh > ~/.zfunc/_jaxgen, a folder of $fpath

_jaxgen_runs() {{
    local -a found=(runs/*/config.json(N:h) {pretrained})
    compadd -a found
    _files -/
}}

_jaxgen() {{
    local -a commands=(
{commands}
    )
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    local command=$words[2]
    if [[ $command == train && $words[3] == ({cases}) ]] && ((CURRENT > 3)); then
        command="train $words[3]"
        shift words
        ((CURRENT--))
    elif [[ $command == train ]] && ((CURRENT == 3)); then
        compadd {tasks}
    fi
    shift words
    ((CURRENT--))
    case $command in
{parts}
    esac
}}

if [[ $funcstack[1] == _jaxgen ]]; then
    _jaxgen "$@"
else
    compdef _jaxgen jaxgen
fi
"""

FISH = """\
# Completion of jaxgen for fish: jaxgen completion fish > ~/.config/fish/completions/jaxgen.fish

function __jaxgen_runs
    for each in runs/*/config.json
        string replace /config.json '' $each
    end
    string split ' ' '{pretrained}'
end

function __jaxgen_is
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test "$words[2]" = $argv[1]; or return 1
    set -l task ''
    if test $argv[1] = train; and test (count $words) -ge 3; and contains -- $words[3] {tasks}
        set task $words[3]
    end
    test "$task" = "$argv[2]"
end

{lines}
"""

SHELLS = {"bash": bash, "fish": fish, "zsh": zsh}
