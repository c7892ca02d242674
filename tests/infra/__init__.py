"""What infra/ holds, checked by the tools that would read it."""
