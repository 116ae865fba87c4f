//! classify PHOTO.ppm LABELS.txt: the five classes that the model finds most probable.

#[path = "../build/classifier.rs"]
mod classifier;

use classifier::{Model, INPUT_IMAGE_SHAPE, INPUT_IMAGE_SIZE, OUTPUT_LOGITS_SIZE};
use std::error::Error;

/// The pixels of a binary PPM file of the size that the model takes.
fn read_photo(path: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let [_, channels, height, width] = INPUT_IMAGE_SHAPE;
    let file = std::fs::read(path)?;
    let header = format!("P6\n{width} {height}\n255\n");
    match file.strip_prefix(header.as_bytes()) {
        Some(pixels) if pixels.len() == channels * height * width => Ok(pixels.to_vec()),
        _ => Err(format!("{path} is no binary PPM file of {width} x {height} pixels").into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, photo, labels] = &arguments[..] else {
        return Err("classify PHOTO.ppm LABELS.txt".into());
    };
    let pixels = read_photo(photo)?;
    let labels = std::fs::read_to_string(labels)?;

    // channels first, and as the model was trained: (pixel - 127) / 128
    let mut image = vec![0.0; INPUT_IMAGE_SIZE];
    for (channel, plane) in image.chunks_mut(pixels.len() / 3).enumerate() {
        for (value, pixel) in plane.iter_mut().zip(pixels.chunks(3)) {
            *value = (f32::from(pixel[channel]) - 127.0) / 128.0;
        }
    }

    let mut logits = [0.0; OUTPUT_LOGITS_SIZE];
    Model::new().run(&image, &mut logits)?;

    let powers = logits.map(f32::exp);
    let sum: f32 = powers.iter().sum();
    let mut found: Vec<_> = powers.iter().zip(labels.lines()).collect();
    found.sort_by(|a, b| b.0.total_cmp(a.0));
    for (power, label) in &found[..5] {
        println!("{:5.1} %  {label}", 100.0 * *power / sum);
    }
    Ok(())
}
