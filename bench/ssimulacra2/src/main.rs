//! Compares pictures by SSIMULACRA2: the names of two files in, each on a line, and a score out.
//!
//! A file: width and height, 32 bits each, then samples of sRGB as floats of 32 bits, 0 to 255;
//! little-endian.

use std::{fs, io};

use ssimulacra2::{
    compute_frame_ssimulacra2, ColorPrimaries, Rgb, TransferCharacteristic,
};

fn load(name: &str) -> Rgb {
    let data = fs::read(name).expect("a file");
    let side = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize;
    let sample = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap()) / 255.0;
    let pixels = data[8..]
        .chunks_exact(12)
        .map(|pixel| [0, 4, 8].map(|at| sample(&pixel[at..at + 4])))
        .collect();
    let (transfer, primaries) = (TransferCharacteristic::SRGB, ColorPrimaries::BT709);
    Rgb::new(pixels, side(0), side(4), transfer, primaries).expect("as many pixels as it says")
}

fn main() {
    let mut lines = io::stdin().lines().map(|line| line.expect("text"));
    while let (Some(wanted), Some(shown)) = (lines.next(), lines.next()) {
        let score = compute_frame_ssimulacra2(load(&wanted), load(&shown));
        println!("{}", score.expect("pictures of one size"));
    }
}
