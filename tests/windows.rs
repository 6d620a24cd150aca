//! Sessions of a model whose layers have a sliding window: they keep only the window, and texts are those of a session
//! that keeps everything.

mod common;

use common::{Tiny, greedy, logits, tokens};
use wavelm::{Device, KvType, Model, Prompt, Sampler, Session};

/// Seven layers, of which the sixth sees everything, and the others 50 positions.
fn tiny() -> Model {
    let tiny = Tiny { arch: "gemma3", window: Some(50), layers: 7, context: 4096, ..Tiny::default() };
    tiny.load(Model::options().device(Device::Cpu).threads(2))
}

/// The logits after all of `tokens` in a session without a past.
fn fresh(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let (last, before) = tokens.split_last().unwrap();
    let mut session = model.session().unwrap();
    if !before.is_empty() {
        session.feed(&Prompt::from_tokens(before)).unwrap();
    }
    logits(&mut session, &[*last]).remove(0)
}

/// How many tokens of the prompt a session did not evaluate again, and the text after it.
fn answer(session: &mut Session, prompt: &[u32]) -> (usize, Vec<u32>) {
    let generation = session.generate(&Prompt::from_tokens(prompt), &Sampler::greedy()).unwrap().max_tokens(30);
    let reused = generation.stats().reused_tokens;
    (reused, generation.filter_map(|piece| piece.unwrap().token()).collect())
}

#[test]
fn a_session_goes_back_to_any_position() {
    let model = tiny();
    let (all, other) = (tokens(1, 1500), tokens(2, 40));
    let mut session = model.session().unwrap();
    session.feed(&Prompt::from_tokens(&all[..700])).unwrap();
    session.feed(&Prompt::from_tokens(&all[..])).unwrap();
    for cut in [1499, 1440, 1430, 1000, 700, 690, 649, 300, 49, 1] {
        let mut fork = session.fork().unwrap();
        fork.truncate(cut);
        assert_eq!(fork.tokens(), &all[..cut]);
        let found = logits(&mut fork, &other);
        let expected = fresh(&model, &[&all[..cut], &other[..]].concat());
        assert_eq!(found.last().unwrap(), &expected, "cut at {cut}");
    }
    // The forks changed nothing.
    assert_eq!(logits(&mut session, &other).pop().unwrap(), fresh(&model, &[&all[..], &other[..]].concat()));
}

#[test]
fn a_conversation_evaluates_little_again() {
    let model = tiny();
    let all = tokens(3, 2000);
    let mut session = model.session().unwrap();
    let mut prompt = all[..400].to_vec();
    let mut before = 0;
    for turn in 1..6 {
        let mut expected = model.session().unwrap();
        let expected = greedy(&mut expected, &prompt, 30).unwrap();
        let (reused, text) = answer(&mut session, &prompt);
        assert_eq!((reused, &text), (before, &expected), "turn {turn}");
        // Again, with another text meanwhile.
        let (reused, text) = answer(&mut session, &prompt);
        assert_eq!((reused, &text), (prompt.len() - 1, &expected), "turn {turn}, again");
        // An edit of the end of the prompt.
        let mut edited = prompt.clone();
        let last = edited.len() - 20;
        edited.splice(last.., tokens(turn, 50));
        let (reused, text) = answer(&mut session, &edited);
        assert_eq!(reused, last, "turn {turn}, edited");
        assert_eq!(text, greedy(&mut model.session().unwrap(), &edited, 30).unwrap());
        let (_, text) = answer(&mut session, &prompt);
        assert_eq!(text, expected);
        // All but the last token of the answer was evaluated.
        prompt.extend(&text);
        before = prompt.len() - 1;
        prompt.extend(tokens(100 + turn, 150));
    }
}

#[test]
fn the_estimate_counts_windows() {
    let folder = std::env::temp_dir().join(format!("wavelm-windows-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("tiny.gguf");
    let estimate = |window| {
        let tiny = Tiny { arch: "gemma3", window, layers: 6, context: 1 << 16, ..Tiny::default() };
        std::fs::write(&path, tiny.file()).unwrap();
        let of = |context| Model::options().kv_type(KvType::F16).context(context).estimate(&path).unwrap().kv_cache;
        [1024, 32_768].map(of)
    };
    // Keys and values of 2 heads with 16 numbers of 2 bytes.
    let layer = 2 * 2 * 16 * 2;
    let [_, all] = estimate(None);
    assert_eq!(all, 6 * layer * 32_768);
    let [short, long] = estimate(Some(512));
    // A page more than 512 and 64 positions at each of four checkpoints, and 256 more in a pass; for 1,024 tokens all of
    // them, and the copies of pages at checkpoints.
    let (in_windows, in_short) = (4 * 640 + 896, 1024 + 4 * 64);
    assert_eq!(long - short, layer * (32_768 - 1024) + 5 * layer * (in_windows - in_short), "{short} {long}");
    assert!(long < all / 3, "{long} of {all}");
    std::fs::remove_dir_all(folder).unwrap();
}
