"""The command `dmoerm`, and `python -m dmoerm`: an interrupt ends it without a traceback while it starts, too."""


def main() -> None:
    """Run the command line; after an interrupt, exit with 130, as shells do."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
