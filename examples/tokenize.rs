//! Text from standard input to token ids on standard output, or back. Works on vocabulary-only files too.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use wavelm::gguf::Gguf;
use wavelm::tokenizer::{EncodeOptions, TokenId, Tokenizer};

const HELP: &str = "\
Writes the token ids of the text on standard input, one per line.

Usage: tokenize --model FILE [OPTIONS]

Options:
  -m, --model FILE  the GGUF file (its tensors are not used)
      --no-special  take the names of special tokens in the text for plain text
      --no-bos      add neither BOS nor EOS, even if the file asks for it
      --json        write one JSON array
      --decode      the other way round: token ids on standard input (separated by anything but digits) to text
  -h, --help        show this help
";

type Failure = Box<dyn std::error::Error>;

struct Arguments {
    model: PathBuf,
    options: EncodeOptions,
    json: bool,
    decode: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tokenize: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some(arguments) = arguments()? else {
        return Ok(std::io::stdout().write_all(HELP.as_bytes())?);
    };
    let gguf = Gguf::open(&arguments.model)?;
    let tokenizer =
        Tokenizer::from_metadata(gguf.metadata()).map_err(|error| format!("{}: {error}", arguments.model.display()))?;
    let mut input = Vec::new();
    std::io::stdin().lock().read_to_end(&mut input).map_err(|error| format!("cannot read standard input: {error}"))?;
    let input = String::from_utf8(input).map_err(|error| {
        format!("standard input is not UTF-8: invalid from byte {} on", error.utf8_error().valid_up_to())
    })?;
    let output = if arguments.decode {
        tokenizer.decode_with_special(&ids(&input, &tokenizer)?)
    } else {
        let ids = tokenizer.encode(&input, arguments.options)?;
        let ids: Vec<String> = ids.iter().map(TokenId::to_string).collect();
        match arguments.json {
            true => format!("[{}]\n", ids.join(", ")),
            false => ids.iter().map(|id| format!("{id}\n")).collect(),
        }
    };
    match std::io::stdout().write_all(output.as_bytes()) {
        // The reader has seen enough, as in `tokenize … | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(format!("cannot write: {error}").into()),
        Ok(()) => Ok(()),
    }
}

/// The command line; `None` where help is asked for.
fn arguments() -> Result<Option<Arguments>, Failure> {
    use lexopt::Arg::{Long, Short};
    let mut parser = lexopt::Parser::from_env();
    let mut model = None;
    let mut options = EncodeOptions { add_special: true, parse_special: true };
    let (mut json, mut decode) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('m') | Long("model") => model = Some(PathBuf::from(parser.value()?)),
            Long("no-special") => options.parse_special = false,
            Long("no-bos") => options.add_special = false,
            Long("json") => json = true,
            Long("decode") => decode = true,
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let model = model.ok_or("--model FILE is missing; see --help")?;
    Ok(Some(Arguments { model, options, json, decode }))
}

/// The numbers in `text`, each of which must be a token.
fn ids(text: &str, tokenizer: &Tokenizer) -> Result<Vec<TokenId>, Failure> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    numbers
        .map(|number| match number.parse() {
            Ok(id) if (id as usize) < tokenizer.vocab_len() => Ok(id),
            _ => Err(format!("{number} is no token: the vocabulary has {}", tokenizer.vocab_len()).into()),
        })
        .collect()
}
