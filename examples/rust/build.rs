//! Links the archive that `minifer compile` wrote into `build`.

fn main() {
    let folder = format!("{}/build", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static=classifier");
    println!("cargo:rerun-if-changed={folder}/libclassifier.a");
}
