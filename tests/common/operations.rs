//! Bytes as operations on the sessions of a model. Whatever was done, the logits of a session are those of a fresh one
//! that is given the same tokens at once, bit by bit. Used by tests/operations.rs and the fuzz target `session`.

use wavelm::{ErrorKind, Generation, Model, Prompt, Sampler, Session, SessionOptions, next_of_each};

/// Sessions at a time at most.
const MOST: usize = 4;
/// Tokens of a session at most: some pages of the cache.
const CONTEXT: usize = 200;

/// Carries out two bytes at a time, an operation and its argument. Tokens are below `tokens`.
///
/// # Panics
/// Where a promise does not hold.
pub fn operate(model: &Model, tokens: u32, bytes: &[u8]) {
    let new = || model.session_with(SessionOptions::default().context(CONTEXT.min(model.context_len()))).unwrap();
    let mut sessions = vec![new()];
    let mut state = 1u32;
    let mut token = |argument: u8| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223 + u32::from(argument));
        (state >> 8) % tokens
    };
    for pair in bytes.chunks_exact(2) {
        let (operation, argument) = (pair[0] % 9, pair[1]);
        let current = usize::from(pair[0] / 9) % sessions.len();
        let count = sessions.len();
        let session = &mut sessions[current];
        let mut all = session.tokens().to_vec();
        match operation {
            // A longer prompt.
            0 => {
                all.extend((0..1 + argument % 40).map(|_| token(argument)));
                feed(session, all);
            }
            // The past edited.
            1 if !all.is_empty() => {
                let at = usize::from(argument) % all.len();
                all[at] = token(argument);
                feed(session, all);
            }
            2 => {
                let len = usize::from(argument) % (all.len() + 1);
                session.truncate(len);
                all.truncate(len);
                assert_eq!(session.tokens(), all);
            }
            3 if count < MOST => {
                let fork = session.fork().unwrap();
                assert_eq!(fork.tokens(), all);
                sessions.push(fork);
            }
            4 => session.clear(),
            5 => {
                let more: Vec<u32> = (0..1 + argument % 12).map(|_| token(argument)).collect();
                let mut rows = 0;
                let scored = session.logits(&more, |row, logits| {
                    assert_eq!((row, logits.len()), (rows, model.vocab_len()));
                    rows += 1;
                    Ok(())
                });
                all.extend(more);
                expect(scored, all.len());
            }
            6 if !all.is_empty() => {
                let sampler = sampler(argument);
                let generated = session.generate(&Prompt::from_tokens(all), &sampler);
                let generated =
                    generated.and_then(|generation| generation.max_tokens(usize::from(argument % 6)).text());
                expect(generated.map(|_| ()), CONTEXT + 1);
            }
            7 => together(&mut sessions, argument),
            8 if count > 1 => drop(sessions.swap_remove(current)),
            _ => {}
        }
    }
    for session in &mut sessions {
        let past = session.tokens().to_vec();
        if past.len() + 1 < CONTEXT {
            let mut fresh = new();
            fresh.feed(&Prompt::from_tokens(past.clone())).map_or_else(|e| assert!(past.is_empty(), "{e}"), |()| ());
            let bits = |session: &mut Session| {
                let mut bits = Vec::new();
                let each = |_, row: &[f32]| {
                    bits = row.iter().map(|logit| logit.to_bits()).collect();
                    Ok(())
                };
                session.logits(&[tokens / 2], each).unwrap();
                bits
            };
            assert!(bits(session) == bits(&mut fresh), "other logits after {past:?}, which came by {bytes:?}");
        }
    }
}

fn sampler(argument: u8) -> Sampler {
    if argument < 128 {
        return Sampler::greedy();
    }
    let sampler = Sampler::builder().temperature(1.5).top_k(40).repetition_penalty(1.1).seed(u64::from(argument));
    sampler.build().unwrap()
}

/// Makes tokens the context; they are then what the session has.
fn feed(session: &mut Session, tokens: Vec<u32>) {
    let len = tokens.len();
    let fed = session.feed(&Prompt::from_tokens(tokens.clone()));
    if fed.is_ok() {
        assert_eq!(session.tokens(), tokens);
    }
    expect(fed, len);
}

/// Nothing else can go wrong than that the context is full.
fn expect(outcome: wavelm::Result<()>, tokens: usize) {
    if let Err(e) = outcome {
        assert!(e.kind() == ErrorKind::ContextFull && tokens > CONTEXT, "{e}");
    }
}

/// All sessions that have tokens generate together.
fn together(sessions: &mut [Session], argument: u8) {
    let mut generations: Vec<Generation> = Vec::new();
    for (i, session) in sessions.iter_mut().enumerate().filter(|(_, session)| !session.is_empty()) {
        let prompt = Prompt::from_tokens(session.tokens().to_vec());
        let sampler = sampler(argument.wrapping_add(i as u8 * 64));
        generations.push(session.generate(&prompt, &sampler).unwrap().max_tokens(1 + (usize::from(argument) + i) % 6));
    }
    while generations.iter().any(|generation| generation.stop_reason().is_none()) {
        for piece in next_of_each(&mut generations).into_iter().flatten() {
            expect(piece.map(|_| ()), CONTEXT + 1);
        }
    }
}
