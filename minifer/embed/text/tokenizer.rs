// The tokenizer of minifer's sentiment model; specified in minifer/pipelines/text.py. No allocation, no state.

/// How many tokens a text has, padding included.
pub const SENTIMENT_LENGTH: usize = 4096;

struct SentimentTokens {
    tokens: [i32; SENTIMENT_LENGTH],
    count: usize,
    before: u32, // the hash of the word before
}

fn sentiment_step(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
}

impl SentimentTokens {
    fn put(&mut self, hash: u32) {
        if self.count < SENTIMENT_LENGTH {
            self.tokens[self.count] = (hash % 65535 + 1) as i32;
            self.count += 1;
        }
    }

    fn word(&mut self, word: &[u8]) {
        let own = word.iter().fold(0x811C_9DC5, |h, &b| sentiment_step(h, b));
        let pair = word.iter().fold(sentiment_step(self.before, b' '), |h, &b| sentiment_step(h, b));
        self.put(own);
        self.put(pair);
        for start in 0..word.len() {
            let marked = std::iter::once(&b'<').chain(word).chain(std::iter::once(&b'>'));
            let mut hash = sentiment_step(0x811C_9DC5, b'#');
            for (i, &byte) in marked.skip(start).take(5).enumerate() {
                hash = sentiment_step(hash, byte);
                if i >= 2 {
                    self.put(hash);
                }
            }
        }
        self.before = own;
    }
}

/// The tokens of a text in UTF-8.
pub fn sentiment_tokens(text: &[u8]) -> [i32; SENTIMENT_LENGTH] {
    let mut found = SentimentTokens { tokens: [0; SENTIMENT_LENGTH], count: 0, before: 0x811C_9DC5 };
    let (mut word, mut length, mut i) = ([0u8; 64], 0, 0);
    while i <= text.len() && found.count < SENTIMENT_LENGTH {
        let (byte, taken) = match text[i..] {
            [] => (0, 1), // a separator ends the last word
            [0xE2, 0x80, 0x98 | 0x99, ..] => (b'\'', 3),
            [0xE2, 0x80, _, ..] => (b' ', 3),
            [byte, ..] => (byte.to_ascii_lowercase(), 1),
        };
        i += taken;
        let inside = matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'\'' | 0x80..);
        if length > 0 && (!inside || length == 64) {
            found.word(&word[..length]);
            length = 0;
        }
        if inside {
            word[length] = byte;
            length += 1;
        } else if byte > 0x20 && byte != 0x7F {
            found.word(&[byte]);
        }
    }
    found.tokens
}
