"""What all commands share: parser, options, wording."""
