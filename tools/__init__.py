"""Chores of the checkout: environment, locks, image, documents. The product never imports it."""
