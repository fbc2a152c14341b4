"""Recipe: edgert's own small chat model, from open texts to a Hugging Face checkpoint.

`python -m recipes.demo_text.run --help` lists the stages; README.md tells the story.
"""
