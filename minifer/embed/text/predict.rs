// Made by minifer from the model $name: UTF-8 in, label and score out.
//
// It stands beside $name.rs in a crate whose root says `mod $name;` and `mod ${name}_text;`.

$tokenizer
/// What a text sounds like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// negative, neutral or positive
    pub label: &'static str,
    /// Probability of the label.
    pub score: f32,
    /// From -4, most negative, to 4, as people would rate it on average.
    pub rating: f32,
    /// Of negative, neutral and positive.
    pub probabilities: [f32; 3],
}

/// The sentiment of a text in UTF-8.
pub fn predict_sentiment(
    model: &mut super::$name::Model,
    text: &[u8],
) -> Result<Prediction, super::$name::Error> {
    let (mut probabilities, mut rating) = ([0.0f32; 3], [0.0f32; 1]);
    model.run(&sentiment_tokens(text), &mut probabilities, &mut rating)?;
    let mut best = 0;
    for i in 1..3 {
        if probabilities[i] > probabilities[best] {
            best = i;
        }
    }
    let label = ["negative", "neutral", "positive"][best];
    Ok(Prediction { label, score: probabilities[best], rating: rating[0], probabilities })
}
